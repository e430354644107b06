"""Lists the stored stages of searches, and removes those that have not been used for some time.

python -m rarezoo.clustering.tidy outputs/mine/stages --remove-unused 30
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from filelock import Timeout

from rarezoo.cli import UserError, closing_lines, print_table, run_script
from rarezoo.clustering.passing import clear_passing
from rarezoo.clustering.stages import RECORD_NAME, clear_leftovers, stage_lock

_DAY = 86_400.0


def stored_stages(root: Path) -> pd.DataFrame:
    """One row a stage of a store, the one that was not used for longest first.

    Parameters
    ----------
    root : the store's folder

    Returns
    -------
    table of stage (its folder's name), megabytes, seconds (that it took; NaN where its record is damaged), and
    unused_days (since it was made or last used)
    """
    rows = []
    for record in root.glob(f"*/{RECORD_NAME}"):
        try:
            seconds = float(json.loads(record.read_text())["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            seconds = float("nan")
        try:
            megabytes = sum(path.stat().st_size for path in record.parent.iterdir()) / 1e6
            rows.append((record.parent.name, megabytes, seconds, (time.time() - record.stat().st_mtime) / _DAY))
        except FileNotFoundError:
            continue  # removed or computed again meanwhile
    table = pd.DataFrame(rows, columns=["stage", "megabytes", "seconds", "unused_days"])
    return table.sort_values(["unused_days", "stage"], ascending=[False, True], ignore_index=True)


def remove_unused(root: Path, days: float) -> list[str]:
    """Remove what nothing has used for so many days, stages and what killed processes left of them; give the names.

    What a process is computing stays. A search that has a removed stage open goes on with it; the next one computes it
    again.

    Raises
    ------
    UserError
        if a stage may not be removed
    """
    unused = stored_stages(root).query("unused_days >= @days")["stage"].tolist()
    leftovers = [path.name for path in root.glob(".*.part*")]
    removed = clear_passing(root)
    for name in [*unused, *leftovers]:
        folder = root / str(name).lstrip(".").split(".")[0]
        try:
            with stage_lock(folder).acquire(timeout=0):
                if name == folder.name:
                    # Without its record it is no stage any more, however far the rest comes.
                    (folder / RECORD_NAME).unlink()
                    shutil.rmtree(folder)
                elif time.time() - (root / name).stat().st_mtime < days * _DAY:
                    continue
                clear_leftovers(folder)
        except (Timeout, FileNotFoundError):
            continue
        except OSError as error:
            raise UserError(f"{folder}: cannot be removed ({error.strerror}). Ask its owner.") from error
        removed.append(str(name))
    return removed


def main(arguments: Sequence[str] | None = None) -> None:
    """List a store, after removing what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m rarezoo.clustering.tidy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of stages, such as outputs/mine/stages")
    parser.add_argument("--remove-unused", type=float, metavar="DAYS", help="remove those not used for so many days")
    given = parser.parse_args(arguments)
    if not given.folder.is_dir():
        raise UserError(
            f"{given.folder}: there is no such folder. Give that of the stages, such as outputs/mine/stages."
        )
    removed = [] if given.remove_unused is None else remove_unused(given.folder, given.remove_unused)
    table = stored_stages(given.folder)
    print_table(table, f"Stages in {given.folder}")
    facts = {"stages": len(table), "gigabytes": float(table["megabytes"].sum() / 1e3), "removed": len(removed)}
    closing_lines({}, facts, None)


if __name__ == "__main__":
    run_script(main, Path(__file__).parent)
