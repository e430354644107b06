import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarezoo.clustering.grouping import group_classes
from rarezoo.clustering.tree import ClassTree


def make_tree(branchings, leaving):
    """Classes are the leaves of a binary tree.

    branchings : (node, lambda) in an order in which nodes come before those below them; each gets the next two numbers
    leaving : for each leaf, in the order of their numbers, lambdas at which its galaxies leave it
    """
    n = sum(map(len, leaving))
    rows, next_node = [], n + 1
    for node, at in branchings:
        rows += [(n + node, next_node, at, 2), (n + node, next_node + 1, at, 2)]
        next_node += 2
    split = {n + node for node, _ in branchings}
    nodes = np.array([node for node in range(n, next_node) if node not in split])
    labels = np.repeat(np.arange(len(nodes)), [len(lambdas) for lambdas in leaving]).astype(np.int32)
    galaxies = np.concatenate([np.asarray(lambdas, float) for lambdas in leaving])
    rows += [(nodes[label], row, at, 1) for row, (label, at) in enumerate(zip(labels, galaxies, strict=True))]
    condensed = pd.DataFrame(rows, columns=["parent", "child", "lambda_val", "child_size"])
    return ClassTree(
        labels=labels,
        probabilities=np.ones(n, np.float32),
        outlier_scores=np.zeros(n, np.float32),
        persistence=np.zeros(len(nodes)),
        nodes=nodes,
        parents=condensed.set_index("child")["parent"].reindex(nodes).to_numpy(),
        condensed=condensed,
    )


@st.composite
def trees(draw):
    """Random binary trees with lambdas that rise from the root."""
    branchings, at, free, next_node = [], {0: 0.5}, [0], 1
    for _ in range(draw(st.integers(1, 9))):
        node = free.pop(draw(st.integers(0, len(free) - 1)))
        born = at[node] * draw(st.sampled_from([1.0, 1.1, 1.3, 2.0]))
        branchings.append((node, born))
        at |= {next_node: born, next_node + 1: born}
        free += [next_node, next_node + 1]
        next_node += 2
    rises = st.lists(st.floats(1.0, 2.0), min_size=1, max_size=4)
    return make_tree(branchings, [[at[leaf] * rise for rise in draw(rises)] for leaf in sorted(free)])


def lowest_common_branchings(tree):
    """Lambda at which each pair of classes parts, by networkx."""
    n = len(tree.labels)
    inner = tree.condensed[tree.condensed["child"] >= n]
    graph = nx.DiGraph(list(zip(inner["parent"], inner["child"], strict=True)))
    parts_at = inner.groupby("parent")["lambda_val"].first()
    number = {node: cluster for cluster, node in enumerate(tree.nodes)}
    for (one, other), above in nx.all_pairs_lowest_common_ancestor(
        graph, [(a, b) for a in tree.nodes for b in tree.nodes if a < b]
    ):
        yield number[one], number[other], parts_at[above]


@settings(deadline=None, max_examples=80)
@given(trees(), st.none() | st.floats(0.01, 1), st.none() | st.floats(-0.9, 0.99), st.integers(0, 999))
def test_groups_are_what_pairs_that_meet_a_criterion_are_connected_to(tree, share, similarity, seed):
    means = np.random.default_rng(seed).normal(size=(tree.n_classes, 3))
    ends = [tree.condensed.loc[tree.condensed["parent"] == node, "lambda_val"].max() for node in tree.nodes]
    joined = nx.empty_graph(tree.n_classes)
    for one, other, at in lowest_common_branchings(tree):
        cosine = means[one] @ means[other] / np.linalg.norm(means[one]) / np.linalg.norm(means[other])
        late = share is not None and at >= (1 - share) * max(ends[one], ends[other])
        if late or (similarity is not None and cosine >= similarity):
            joined.add_edge(one, other)
    found = group_classes(tree, means, share, similarity)
    expected = {frozenset(group) for group in nx.connected_components(joined)}
    assert {frozenset(np.flatnonzero(found == group).tolist()) for group in set(found)} == expected
    sizes = np.bincount(found, weights=tree.sizes())
    assert (np.diff(sizes) <= 0).all()
    assert found.dtype == np.int32


def test_a_class_far_denser_than_the_branching_is_no_piece_of_its_neighbour():
    # 1 and 2 part at 1.0 and reach 1.1 and 1.2; the third parts from both at 0.9 and reaches 5.
    tree = make_tree([(0, 0.9), (1, 1.0)], [[5.0, 1.5], [1.1, 1.05], [1.2]])
    assert group_classes(tree, np.eye(3), tree_share=0.2).tolist() == [1, 0, 0]
    assert group_classes(tree, np.eye(3), tree_share=0.1).tolist() == [0, 1, 2]


def test_the_larger_group_has_the_lower_number_whatever_the_order_of_classes():
    tree = make_tree([(0, 1.0), (1, 2.0)], [[2.0], [3.0] * 2, [3.0] * 4])
    means = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    assert group_classes(tree, means, similarity=1.0).tolist() == [0, 1, 0]


def test_groups_of_one_size_are_in_the_order_of_their_first_classes():
    tree = make_tree([(0, 1.0), (1, 2.0)], [[2.0], [3.0], [3.0]])
    assert group_classes(tree, np.eye(3)).tolist() == [0, 1, 2]


def test_a_class_whose_mean_is_that_of_all_galaxies_is_like_no_other():
    tree = make_tree([(0, 1.0)], [[2.0], [3.0]])
    assert group_classes(tree, np.array([[0.0, 0.0], [1.0, 0.0]]), similarity=-1).tolist() == [0, 1]


@pytest.mark.parametrize("criteria", [{}, {"tree_share": 0.2, "similarity": 0.9}])
def test_without_classes_there_are_no_groups(criteria):
    tree = ClassTree(
        labels=np.full(3, -1, np.int32),
        probabilities=np.zeros(3, np.float32),
        outlier_scores=np.zeros(3, np.float32),
        persistence=np.empty(0),
        nodes=np.empty(0, np.int64),
        parents=np.empty(0, np.int64),
        condensed=pd.DataFrame({"parent": 3, "child": range(3), "lambda_val": 1.0, "child_size": 1}),
    )
    assert group_classes(tree, np.empty((0, 4)), **criteria).shape == (0,)
