import pytest
import torch
from torch.nn import functional

from rarezoo.models.biased_settings import ObjectiveSettings
from rarezoo.models.objectives import (
    absolute_error,
    binary_cross_entropy,
    make_objective,
    negative_log_likelihood,
    rescaled_squares,
    softmax_cross_entropy,
    squared_error,
)

NO_CHOICE = {"link": None, "of": None, "over": None, "alpha": None, "beta": None}
EVERY = [
    {"name": "sce"},
    *({"name": "bce", "over": over} for over in ("mean", "sum")),
    *({"name": "nll", "link": link} for link in ("log_softmax", "softplus")),
    *({"name": name, "of": of, "over": "sum"} for name in ("l1", "l2") for of in ("softmax", "outputs")),
    {"name": "sos", "over": "mean", "alpha": 1.0, "beta": 1.0},
    {"name": "sos", "over": "sum", "alpha": 5.0, "beta": 3.0},
]


def objective(**chosen):
    return make_objective(ObjectiveSettings.model_validate(NO_CHOICE | chosen))


def name_of(chosen):
    return "-".join(map(str, chosen.values()))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(7, 5, generator=generator), torch.randint(0, 5, (7,), generator=generator)


def one_hot(target):
    return torch.eye(5)[target]


def test_softmax_cross_entropy_is_torchs(batch):
    torch.testing.assert_close(softmax_cross_entropy(*batch).mean(), torch.nn.CrossEntropyLoss()(*batch))


def test_binary_cross_entropy_is_torchs_of_the_sigmoid(batch):
    outputs, target = batch
    theirs = torch.nn.BCELoss()(torch.sigmoid(outputs.double()), one_hot(target).double())
    torch.testing.assert_close(binary_cross_entropy(outputs, target, "mean").mean().double(), theirs)
    torch.testing.assert_close(binary_cross_entropy(outputs, target, "sum").mean().double(), 5 * theirs)


def test_negative_log_likelihood_is_torchs_of_the_log_softmax_and_so_equals_cross_entropy_bit_by_bit_in_value(batch):
    outputs, target = batch
    theirs = torch.nn.NLLLoss()(torch.log_softmax(outputs, 1), target)
    torch.testing.assert_close(negative_log_likelihood(outputs, target, "log_softmax").mean(), theirs)
    torch.testing.assert_close(
        negative_log_likelihood(outputs, target, "log_softmax"), softmax_cross_entropy(outputs, target)
    )


def test_softplus_likelihood_is_that_of_probabilities_in_proportion_to_log_of_one_plus_exp(batch):
    outputs, target = batch
    weights = torch.log1p(torch.exp(outputs.double()))
    theirs = -torch.log(weights[torch.arange(7), target] / weights.sum(1))
    torch.testing.assert_close(negative_log_likelihood(outputs, target, "softplus").double(), theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(absolute_error, functional.l1_loss), (squared_error, functional.mse_loss)]
)
@pytest.mark.parametrize("of", ["softmax", "outputs"])
def test_errors_are_torchs_and_their_sum_is_as_many_times_the_mean_as_there_are_classes(ours, theirs, of, batch):
    outputs, target = batch
    compared = torch.softmax(outputs, 1) if of == "softmax" else outputs
    expected = theirs(compared, one_hot(target))
    torch.testing.assert_close(ours(outputs, target, of, "mean").mean(), expected)
    torch.testing.assert_close(ours(outputs, target, of, "sum").mean(), 5 * expected)


def test_absolute_error_of_the_softmax_is_twice_what_the_own_class_lacks(batch):
    outputs, target = batch
    lacking = 1 - torch.softmax(outputs, 1)[torch.arange(7), target]
    torch.testing.assert_close(absolute_error(outputs, target, "softmax", "sum"), 2 * lacking)


def test_rescaled_squares_with_one_and_one_are_the_mean_squared_error_of_the_outputs(batch):
    outputs, target = batch
    theirs = torch.nn.MSELoss()(outputs, one_hot(target))
    torch.testing.assert_close(rescaled_squares(outputs, target, 1.0, 1.0, "mean").mean(), theirs)


def test_rescaled_squares_weigh_the_own_class_and_draw_it_to_beta():
    outputs, target = torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([0])
    by_hand = (15 * (2 - 30) ** 2 + 1 + 9) / 3
    assert rescaled_squares(outputs, target, 15.0, 30.0, "mean").item() == pytest.approx(by_hand)


@pytest.mark.parametrize("chosen", EVERY, ids=name_of)
@pytest.mark.parametrize("size", [1e-30, 1.0, 100.0, 1e4])
def test_loss_and_gradient_are_finite_at_any_outputs(chosen, size):
    signs = torch.tensor([[1.0, -1.0, 0.5], [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 0.0]])
    outputs = (size * signs).requires_grad_()
    loss = objective(**chosen)(outputs, torch.tensor([1, 0, 2, 0]))
    assert loss.shape == (4,)
    assert torch.isfinite(loss).all()
    loss.mean().backward()
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("chosen", EVERY, ids=name_of)
def test_gradient_is_that_of_finite_differences_in_double_precision(chosen, batch, monkeypatch):
    # The losses are in float32 on purpose; the formula behind them is what is checked.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    outputs, target = batch
    loss = objective(**chosen)
    torch.autograd.gradcheck(lambda each: loss(each, target), outputs.double().requires_grad_())


@pytest.mark.parametrize("chosen", EVERY, ids=name_of)
def test_a_step_down_the_gradient_raises_the_output_of_the_own_class_above_the_others(chosen):
    outputs, target = torch.zeros(3, 4, requires_grad=True), torch.tensor([0, 1, 2])
    objective(**chosen)(outputs, target).mean().backward()
    assert (-outputs.grad).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("chosen", EVERY, ids=name_of)
def test_losses_are_computed_in_single_precision_whatever_the_outputs_come_in(chosen, batch):
    outputs, target = batch
    halved = outputs.bfloat16()
    assert objective(**chosen)(halved, target).dtype == torch.float32
    torch.testing.assert_close(objective(**chosen)(halved, target), objective(**chosen)(halved.float(), target))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"name": "sce", "over": "sum"}, "over=sum: for sce, it has no such choice, give null"),
        ({"name": "bce"}, "over=null: for bce, give a value"),
        ({"name": "sos", "over": "mean", "alpha": 1.0}, "beta=null: for sos, give a value"),
        ({"name": "nll", "link": "raw"}, "'log_softmax' or 'softplus'"),
        ({"name": "hinge"}, "'sce', 'bce', 'nll', 'l1', 'l2' or 'sos'"),
    ],
)
def test_a_choice_that_an_objective_does_not_have_is_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        objective(**chosen)
