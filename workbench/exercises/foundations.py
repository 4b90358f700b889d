"""The exercises of the notebooks 00 to 05: the plane, the micro-world, pairs, the tax, subspaces, projection."""

import math
from collections.abc import Mapping
from functools import cache
from typing import get_args

import pandas as pd
import torch

from workbench.corpora.microworld import MicroWorld
from workbench.exercises.answers import Exercise, Number, Numbers, Word, Words
from workbench.geometry.gradients import ReferenceGradients
from workbench.geometry.subspace import Scope, Subspace, group_parameters
from workbench.models import build_model
from workbench.study.tradeoff import at_matched_safety, pareto_set, tax_per_safety_gain

# 0.1: four runs as the tour's exercise has them
FOUR_RUNS = pd.DataFrame(
    {"safety": [0.95, 0.95, 0.60, 0.95], "utility": [0.90, 0.95, 1.00, 0.95], "over_refusal": [0.40, 0.10, 0.00, 0.30]},
    index=["A", "B", "C", "D"],
)
SUITES = ("harmful_seen", "harmful_heldout", "harmful_unseen_kind", "lookalike", "facts")
# 3.3: a run as it was evaluated on its way
ON_THE_WAY = [
    {"step": step, "safety": safety, "utility": utility}
    for step, safety, utility in [(0, 0.0, 1.0), (5, 0.8, 0.9), (10, 1.0, 0.5)]
]


def dominated() -> set[str]:
    """The runs that another one betters in something while worse in nothing."""
    front = pareto_set(FOUR_RUNS, maximise=("safety", "utility"), minimise=("over_refusal",))
    return {str(name) for name in front.index[~front]}


def harmful_requests(world: MicroWorld) -> int:
    """All harmful requests of a world, trained on or held out."""
    return sum(len(world.requests(split)) for split in ("seen", "heldout", "unseen_kind"))


def larger_world() -> MicroWorld:
    """That of notebook 01, whose people do not matter here."""
    return MicroWorld(n_people=4, n_verbs=12, n_materials=20, n_kinds=16)


def dpo_loss(moved: float) -> float:
    """DPO's loss of a pair whose margin has moved by this many 1/β."""
    return math.log1p(math.exp(-moved))


def pull_at_the_start(beta: float) -> float:
    """|∂L/∂m| of DPO's loss in the margin, before anything has moved."""
    margin = torch.zeros((), requires_grad=True)
    (-torch.nn.functional.logsigmoid(beta * margin)).backward()
    assert margin.grad is not None
    return abs(margin.grad.item())


def of_vectors(*vectors: list[float]) -> Subspace:
    """The span of vectors in one block."""
    rows = torch.tensor(vectors, dtype=torch.float64)
    return Subspace.fit(ReferenceGradients(tuple(map(str, range(len(rows)))), {"x": rows}))


def rank_with_a_redundant_domain() -> int:
    """The directions of four mean gradients, the last of which is the sum of the first two."""
    first = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return of_vectors(*first.tolist(), (first[0] + first[1]).tolist()).rank


def nearest_planes() -> float:
    """The largest cosine of a principal angle between two planes of three dimensions."""
    one, other = (torch.randn(2, 3, generator=torch.Generator().manual_seed(s)).tolist() for s in (0, 1))
    (cosines,) = of_vectors(*one).principal_angles(of_vectors(*other)).values()
    return cosines[0].item()


@cache
def directions(scope: Scope) -> int:
    """Of the micro-world's reference domains in its model, over all blocks; no weight is stored."""
    world = MicroWorld()
    with torch.device("meta"):
        model, _ = build_model(world)
    return len(world.references(1)) * len(group_parameters(dict(model.named_parameters()), scope))


def leakage_of_signs() -> float:
    """‖Uᵀδ‖/‖δ‖ of Adam's first step δ for g = (4, 1, 1), projected out of U = (1, 1, 1)/√3."""
    subspace, gradient = of_vectors([1, 1, 1]), {"x": torch.tensor([4, 1, 1], dtype=torch.float64)}
    subspace.project_out_(gradient)
    return math.sqrt(subspace.energy({"x": -gradient["x"].sign()}).share)


def with_half_the_rate() -> tuple[float, float]:
    """By what factors the length and the leakage of Adam's step change."""
    subspace, gradient = of_vectors([1, 2, 3, 4]), torch.tensor([0.3, -2.0, 0.5, 1.0], dtype=torch.float64)
    steps = []
    for rate in (1e-2, 5e-3):
        x = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
        x.grad = gradient
        torch.optim.Adam([x], lr=rate, eps=0).step()
        steps.append(x.detach())
    whole, half = (math.sqrt(subspace.energy({"x": step}).share) for step in steps)
    return (steps[1].norm() / steps[0].norm()).item(), half / whole


def removed_lengths() -> tuple[float, float]:
    """What is taken of the step (−1, −1) where the reference gradient is (1, 0): always, and on conflict."""
    subspace, step = of_vectors([1, 0]), torch.tensor([-1, -1], dtype=torch.float64)
    (reading,) = subspace.read({"x": step})
    kept = {when: {"x": step.clone()} for when in ("always", "conflict")}
    subspace.subtract_(kept["always"], subspace.removal(reading, "always"))
    subspace.subtract_(kept["conflict"], subspace.removal(reading, "conflict"))
    return (step - kept["always"]["x"]).norm().item(), (step - kept["conflict"]["x"]).norm().item()


FOUNDATIONS: Mapping[str, Exercise] = {
    "0.1": Exercise(
        Words(tuple(FOUR_RUNS.index)),
        dominated,
        why=(
            "A dominated run is worse in something and better in nothing, whatever you value. Between the others "
            "nothing but your values can choose."
        ),
        hint=(
            "Compare them two at a time: is one at least as good in all three numbers, and better in one? Of over-"
            "refusal less is better."
        ),
        slips=(
            ({"A"}, "That one, yes. Is there another that ties in two numbers and loses in the third?"),
            ({"C"}, "It has the least safety, but it is the best in something, so nothing dominates it."),
            (("A", "C", "D"), "One of these is the best of all in something."),
        ),
    ),
    "0.2": Exercise(
        Number("a share of energy"),
        lambda: 0.2**2,
        why=(
            "Energy is squared length. Papers report one or the other, and 20 % of the length sounds worse than 4 % of"
            " the energy."
        ),
        hint="Energy is ‖Uᵀδ‖² / ‖δ‖², leakage ‖Uᵀδ‖ / ‖δ‖.",
        slips=((0.2, "That is the share of the length."), (math.sqrt(0.2), "The other way: energy is the square.")),
    ),
    "0.3": Exercise(
        Word(SUITES),
        lambda: "lookalike",
        why=(
            "Only harmless requests that look harmful tell care from fear. A benchmark without them rewards whoever "
            "refuses everything."
        ),
        hint="What does each of the two say there? Look for the suite where their answers differ.",
    ),
    "1.1": Exercise(
        Numbers(("safety", "over-refusal", "utility")),
        lambda: (1.0, 1.0, 1.0),
        why=(
            "Perfect in two numbers and as bad as can be in the third, where more is worse. A score that leaves look-"
            "alikes out would call it ideal."
        ),
        hint=(
            "Safety and over-refusal are both shares of refusals, of harmful requests and of look-alikes; utility is "
            "about people, sums and word games."
        ),
        slips=(
            ((1, 0, 1), "That would be the careful one. This one refuses look-alikes, too."),
            ((1, 1, 0), "It does solve what is no request."),
        ),
    ),
    "1.2": Exercise(
        Number("requests"),
        lambda: harmful_requests(larger_world()),
        why="Requests are combinations, so a few words more make a much larger world, and each stays exactly scored.",
        hint="Multiply what can be combined, and count only the nouns that are harmful.",
        slips=(
            (lambda: 2 * harmful_requests(larger_world()), "That counts the harmless twins as well."),
            (lambda: len(larger_world().requests("seen")), "That leaves out what is held out of training."),
        ),
    ),
    "1.3": Exercise(
        Word(),
        lambda: MicroWorld(seed=1).unseen_kind,
        why="The seed draws the held-out noun as well, so a result on one world may hang on which noun it was.",
        hint=(
            "Make the world with `wb.MicroWorld(seed=1)` and ask it, as this notebook does, for the noun that safety "
            "training leaves out."
        ),
        slips=((lambda: MicroWorld(seed=0).unseen_kind, "That is the noun of the world with seed 0."),),
    ),
    "1.4": Exercise(
        Number("prompts"),
        lambda: 0.5 * (1 - 0.5) / 0.01**2,
        why=(
            "A hundred times as many prompts make a rate ten times as sure. With a hundred, two rates near one half "
            "that differ by .05 are the same."
        ),
        hint="The variance of a rate p over n prompts is p(1 − p)/n; its root is the standard deviation.",
        slips=(
            (50, "That solves .5/n = .01. The standard deviation falls with the root of n."),
            (25, "The variance is what is divided by n, and you are asked for its root."),
        ),
    ),
    "2.1": Exercise(
        Number("nats"),
        lambda: dpo_loss(2),
        why=(
            "At the start it is log 2 = .69. Once the margin has moved by a few 1/β, the loss has nearly nothing more "
            "to say, so β sets how far a pair pulls."
        ),
        hint="Put the movement into the loss: β times it is 2.",
        slips=(
            (lambda: dpo_loss(-2), "That pair moved the wrong way. Mind the sign in the sigmoid."),
            (lambda: math.exp(-dpo_loss(2)), "That is σ; the loss is minus its logarithm."),
            (lambda: math.log(2), "That is the loss before anything has moved."),
        ),
    ),
    "2.2": Exercise(
        Number("nats"),
        lambda: (-14 - -20) - (-10 - -8),
        why="The loss is told of this number alone.",
        hint="The margin is log p of the chosen less log p of the rejected. Take it before and after.",
        slips=(
            (6, "That is the margin after training. How far has it moved?"),
            (-8, "Mind the sign: after less before."),
            (-4, "That is how far the chosen answer moved."),
        ),
    ),
    "2.3": Exercise(
        Word(("the chosen", "the rejected", "both", "neither")),
        lambda: "neither",
        why=(
            "The margin grew by pushing one answer down faster than the other. What gained is something that no pair "
            "named. Taken far enough, DPO alone ends in garble so: see the next notebook."
        ),
        hint="Compare the log-likelihood of each answer with its own before, not with that of the other.",
    ),
    "2.4": Exercise(
        Number("per nat"),
        lambda: pull_at_the_start(0.1),
        why=(
            "The slope is β·σ(−β·moved): largest at the start, and in proportion to β. A larger β is a firmer leash in"
            " the end and a stronger pull in the beginning."
        ),
        hint="Differentiate −log σ(βm) in m, at m = 0.",
        slips=(
            (0.5, "That is the slope in βm. There is an inner derivative."),
            (0.1, "That is β. What is σ(0)?"),
            (-0.05, "The size was asked for."),
        ),
    ),
    "3.1": Exercise(
        Number("of ability for a unit of safety"),
        lambda: tax_per_safety_gain(0.96, 0.72, 0.05, 0.95),
        why=(
            "A price lets runs that bought different amounts be compared, as far as the price does not depend on the "
            "amount. It does: see the doses above."
        ),
        hint="What was lost, for what was gained.",
        slips=(
            (0.24, "That is what was lost. For how much safety?"),
            (0.75, "That is retention, the share that is left."),
            (3.75, "That is safety for ability."),
            (0.24 / 0.95, "Safety was not zero before."),
        ),
    ),
    "3.2": Exercise(
        Numbers(("safety", "garble")),
        lambda: (30 / 100, 1 - 30 / 100 - 0 / 100),
        why=(
            "Safety counts refusals. An attack success rate, which counts compliance, would have called this model "
            "perfectly safe."
        ),
        hint="Every answer is a refusal, a compliance or garble, and safety is the share of one of them.",
        slips=(((1, 0.7), "No compliance is not the same as refusal."), ((30, 70), "As shares, please.")),
    ),
    "3.3": Exercise(
        Number("utility"),
        lambda: at_matched_safety(ON_THE_WAY, 0.9, ["utility"])["utility"],
        why=(
            "At its end the run has .5: it went on paying when there was nothing left to buy. Compare runs where they "
            "are equally safe."
        ),
        hint=(
            "Find the two evaluations between which safety passes the target, and go along the straight line between "
            "them."
        ),
        slips=(
            (0.5, "That is where the run ended."),
            (0.9, "There it is not safe enough yet."),
            (0.95, "Interpolate in safety, from the evaluation before the target is passed to the one after."),
        ),
    ),
    "3.4": Exercise(
        Words(("safety", "compliance with harmful requests", "over-refusal", "look-alikes answered")),
        lambda: {"safety", "compliance with harmful requests"},
        why=(
            "No number from the harmful side can see what was lost on the harmless one. That is why there are two "
            "sides, and why they are never averaged."
        ),
        hint="Write down all four numbers for this model, and beside each the best value it could have.",
        slips=(({"safety"}, "That one, yes. Is there another?"),),
    ),
    "4.1": Exercise(
        Number("a share of energy"),
        lambda: 16 / 10_000,
        why="By chance a subspace holds r/d of anything. A removed energy means something only beside this number.",
        hint="All coordinates are alike to a random vector, and the basis can be turned so that it takes r of them.",
        slips=(
            (0.04, "That is the share of the length. Energy is its square."),
            (0.16, "Mind the zeros: what are r and d?"),
        ),
    ),
    "4.2": Exercise(
        Number("directions"),
        rank_with_a_redundant_domain,
        why=(
            "Directions are counted, not domains: one that others span already protects nothing new. To get rank 8, "
            "you need eight independent gradients at least."
        ),
        hint="What does the last domain add to the span of the others?",
        slips=((4, "That is the number of domains."), (2, "Two of them make a third one superfluous; how many stay?")),
    ),
    "4.3": Exercise(
        Number("a cosine"),
        nearest_planes,
        why=(
            "Two planes in space always share a line. In a small block nearness means nothing, so every angle here "
            "stands beside its chance level."
        ),
        hint="Picture two sheets of paper through one point: what do they have in common?",
        slips=(
            (lambda: 2 * math.sqrt(2 / 3), "No cosine is that large: the rule of thumb is for k much smaller than d."),
            (0, "They could be perpendicular as sheets. But the smallest principal angle is between lines in them."),
        ),
    ),
    "4.4": Exercise(
        Numbers(("per tensor", "per layer", "global")),
        lambda: tuple(directions(scope) for scope in get_args(Scope)),
        why=(
            "One gradient per domain is as many directions as there are domains in every block. Per tensor that "
            "forbids far more than the theory asks for, so say the scope beside every rank."
        ),
        hint=(
            "Count the blocks, and how many directions each of them gets. What lies outside of the layers is a block "
            "per parameter."
        ),
        slips=(
            ((4, 4, 4), "That is the rank of one block."),
            (
                lambda: tuple(directions(scope) // 4 for scope in get_args(Scope)),
                "Those are the blocks. How many directions has each?",
            ),
            (
                lambda: (directions("tensor"), 8, 4),
                "The embedding and the last norm lie outside of the layers, and are protected too.",
            ),
        ),
    ),
    "5.1": Exercise(
        Number("a share of the length"),
        leakage_of_signs,
        why=(
            "The projected gradient is exactly outside. Its signs are not: Adam's first step puts a third of its "
            "length back in."
        ),
        hint=(
            "Take the mean of g out of each coordinate (that is the projection here), keep the signs alone, and "
            "measure these against U."
        ),
        slips=(
            (0, "That is the projected gradient. What of its signs?"),
            (lambda: leakage_of_signs() ** 2, "That is the share of the energy."),
            (1, "That would be the signs of g itself. Project first."),
            (lambda: math.sqrt(leakage_of_signs()), "Divide by the length of the step, which is √3."),
        ),
    ),
    "5.2": Exercise(
        Numbers(("factor of the length", "factor of the leakage")),
        with_half_the_rate,
        why=(
            "A smaller rate makes a smaller step in the same direction, and leakage is a matter of direction. It "
            "cannot be cured by patience."
        ),
        hint="Run `toy` with both rates, or think what the rate is multiplied with.",
        slips=(
            ((0.5, 0.5), "Leakage is a share of the step, not a length."),
            ((1, 1), "The step does get shorter."),
            ((0.5, 0.25), "Leakage is a share of the step, not a length."),
        ),
    ),
    "5.3": Exercise(
        Numbers(("removed always", "removed on conflict")),
        removed_lengths,
        why=(
            "The step lowers the reference loss already. An equality forbids even that help; an inequality, A-GEM's, "
            "lets it be."
        ),
        hint="Removed is the part of δ along R; on conflict only if δ raises the reference loss, which is if R·δ > 0.",
        slips=(
            ((1, 1), "What is the sign of R·δ, and does the reference loss rise along δ?"),
            ((0, 1), "The other way round: which of the two rules is the stricter?"),
        ),
    ),
    "5.4": Exercise(
        Number("GB"),
        lambda: 4 * 7e9 * 2 / 1e9,
        why=(
            "Each direction is as large as the model. So one counts directions, shares the basis over devices, or fits"
            " it anew rather than keeping it."
        ),
        hint="One direction has one number for every parameter, and a bfloat16 has two bytes.",
        slips=((14, "That is one direction."), (28, "Two bytes for each number."), (112, "bfloat16, not float32.")),
    ),
}
