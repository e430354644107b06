"""From a galaxy's parameters to the picture that the survey publishes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rarezoo.data.simulate.artifacts import add_artifact
from rarezoo.data.simulate.paint import paint_field, paint_galaxy
from rarezoo.data.simulate.population import Galaxy
from rarezoo.data.simulate.rare import RARE_CLASSES
from rarezoo.data.simulate.render import Canvas, add_noise, blur, stretched


def take_picture(galaxy: Galaxy, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint a galaxy and what lies around it, blur, add noise and faults, and stretch.

    The details are drawn before the noise: the same generator gives the same galaxy at any size.

    Parameters
    ----------
    galaxy : its parameters, lengths in px of this frame
    size : side of the frame, px
    rng : source of the places of details, of the field and of the noise

    Returns
    -------
    (size, size, 3), red, green, blue
    """
    canvas = Canvas(size)
    paint = RARE_CLASSES[galaxy.rare_class].paint if galaxy.rare_class else paint_galaxy
    paint(canvas, galaxy, rng)
    paint_field(canvas, rng)
    flux = add_noise(blur(canvas.flux, galaxy.psf_fwhm), canvas.scale, rng)
    if galaxy.artifact:
        flux = add_artifact(flux, galaxy.artifact, rng, canvas.scale)
    return stretched(flux)
