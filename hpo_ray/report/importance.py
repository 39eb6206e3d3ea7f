"""How much each hyperparameter matters, by two measures that ask different questions, and how far to trust them.

fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014) asks how much of the metric's variance over the whole space a
hyperparameter explains alone; PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023) how much it decides whether a trial
is among the best tenth. Both are Optuna's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from hpo_ray.report.optuna_study import Compared, compared, quiet, shown, study_of
from hpo_ray.report.parts import Part, Plot, Section, Words
from hpo_ray.report.theme import BLUE, GREY, ORANGE, escaped, figure, thinned
from hpo_ray.view import count

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject

FEWEST = 10
"""With fewer trials the best tenth is not even one, and nothing is told."""
FEWEST_EACH = 10
"""Trials for each hyperparameter from which on a model of the metric can be expected to hold."""
FEWEST_PED = 50
"""Trials of which the best tenth are five."""
REPEATS = 10
MOST_TRIALS, MOST_RESAMPLED = 300, 150
"""How many trials go into the importances, and into each repetition: ten thousand take no longer than these."""
MOST_SHOWN = 12
_TREES, _TREES_RESAMPLED, _DEPTH = 16, 6, 8


@dataclass(frozen=True)
class Measure:
    """The importances by one measure, as shares that add up to 1.

    Attributes:
        name: the measure.
        middle: by name of the hyperparameter.
        low: the smallest that it was in a repetition.
        high: the largest.
    """

    name: str
    middle: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


@dataclass(frozen=True)
class Importances:
    """What came of both measures.

    Attributes:
        names: the hyperparameters, the most important first by the mean of the measures; conditional ones last.
        fanova: None where it could not be computed.
        ped_anova: None where it could not be computed.
        explained: the share of the variance that the hyperparameters explain each alone; None without fANOVA.
        conditional: those that not all trials have, of which fANOVA knows nothing.
        why_not: a sentence, if there is nothing.
    """

    names: tuple[str, ...]
    fanova: Measure | None = None
    ped_anova: Measure | None = None
    explained: float | None = None
    conditional: tuple[str, ...] = ()
    why_not: str = ""

    @property
    def measures(self) -> list[Measure]:
        """Those that could be computed."""
        return [measure for measure in (self.fanova, self.ped_anova) if measure is not None]


_measured: WeakKeyDictionary[Compared, Importances] = WeakKeyDictionary()


def importances(of: Compared) -> Importances:
    """Both measures for these trials; computed once.

    What is told is of the trials themselves, 300 at most. Each measure is then repeated on ten bootstrap samples of 150
    at most, with another forest each time: where the repetitions lie apart, there are too few trials to tell. Their
    middle is not used: a sample in which trials occur twice makes chance look like importance to PED-ANOVA.

    For fANOVA a hyperparameter is scaled as its domain is sampled, logarithms included, and a choice is its number: in
    Optuna's own encoding a logarithmic range counts almost only at its upper end, and the time doubles with each
    choice.
    """
    if of not in _measured:
        _measured[of] = _measure(of)
    return _measured[of]


def importance(subject: Subject, metric: str | None = None) -> Figure | None:
    """The importance of each hyperparameter by fANOVA and by PED-ANOVA.

    Lines on the bars reach from the smallest to the largest of ten repetitions on bootstrap samples.

    Args:
        subject: the study.
        metric: one of its metrics; by default the one that it optimises.

    Returns:
        None if neither measure can be computed.
    """
    import plotly.graph_objects as go

    of = compared(subject, metric)
    found = None if of is None else importances(of)
    if found is None or not found.measures:
        return None
    names = found.names[:MOST_SHOWN]
    height = 110 + 44 * len(names)
    drawn = figure(xaxis_title="share of importance", height=height, barmode="group", bargap=0.35)
    for measure, colour in zip((found.fanova, found.ped_anova), (BLUE, ORANGE), strict=True):
        if measure is None:
            continue
        known = [name for name in names if name in measure.middle]
        middle = [measure.middle[name] for name in known]
        drawn.add_trace(
            go.Bar(
                x=middle,
                y=[names.index(name) for name in known],
                name=measure.name,
                orientation="h",
                marker={"color": colour, "line": {"width": 0}},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [measure.high[name] - value for name, value in zip(known, middle, strict=True)],
                    "arrayminus": [value - measure.low[name] for name, value in zip(known, middle, strict=True)],
                    "color": GREY,
                    "thickness": 1.5,
                    "width": 3,
                },
                text=[escaped(name) for name in known],
                textposition="none",
                customdata=[[measure.low[name], measure.high[name]] for name in known],
                hovertemplate="%{text}<br>%{x:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})",
            )
        )
    drawn.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[shown(name) for name in names], autorange="reversed", showgrid=False
    )
    return drawn.update_xaxes(rangemode="tozero")


def section(subject: Subject) -> Section | None:
    """The importances of each metric, and how far to trust them."""
    parts: list[Part] = []
    for metric in list(subject.started.metrics) or [subject.started.metric]:
        of = compared(subject, metric)
        if of is None or not of.parameters:
            continue
        found, drawn = importances(of), importance(subject, metric)
        if drawn is None:
            parts.append(Words(f"Of {metric}: {found.why_not} {of.said}" if found.why_not else of.said))
            continue
        name = "importance" if metric == subject.started.metric else f"importance(metric={metric!r})"
        parts += [Plot(drawn, _caption(of, found), name), Words(_trust(of, found))]
    if not parts:
        return None
    what = (
        "fANOVA: how much of the variance over the whole space a hyperparameter explains alone. PED-ANOVA: how much it "
        "decides whether a trial is among the best tenth. They may differ rightly: what avoids the worst is not always "
        "what makes the best. Each is a share of all; lines reach from the smallest to the largest of ten repetitions "
        "on bootstrap samples."
    )
    return Section(
        "importance", "Importance", (*parts, Words(what)) if any(isinstance(p, Plot) for p in parts) else parts
    )


def _caption(of: Compared, found: Importances) -> str:
    caption = f"What decides {of.metric}. {of.said}"
    if len(found.names) > MOST_SHOWN:
        caption += f" The {MOST_SHOWN} most important of {len(found.names)}."
    if found.explained is not None:
        caption += f" Each alone, they explain {found.explained:.0%} of the variance; the rest is in how they interact."
    if found.conditional and found.fanova is not None:
        names = ", ".join(found.conditional)
        caption += (
            f" Not all trials have {names}: of {'it' if len(found.conditional) == 1 else 'these'} fANOVA can't tell, "
            f"so {'it comes' if len(found.conditional) == 1 else 'they come'} last."
        )
    moved = any(trial.hyperparameters for trial in of.trials)
    return caption + " Hyperparameters that trials moved themselves count with where they began." * moved


def _trust(of: Compared, found: Importances) -> str:
    """How far to trust the importances, by the number of trials and by how the repetitions and measures agree."""
    trials, wanted = of.count, FEWEST_EACH * len(of.parameters)
    words = f"{count(trials, 'trial')} for {count(len(of.parameters), 'hyperparameter')}"
    if trials < wanted:
        words += (
            f": fewer than the {wanted} (ten each; Loeppky, Sacks and Welch 2009) from which on a model of the metric "
            f"can be expected to hold, so take this as a hint."
        )
    else:
        words += ": at least ten each, enough for a model of the metric to hold (Loeppky, Sacks and Welch 2009)."
    if trials < FEWEST_PED:
        tenth = math.ceil(trials / 10)
        words += f" The best tenth {'is one trial' if tenth == 1 else f'are {tenth} trials'}, and PED-ANOVA wants five."
    for measure in found.measures:
        ranked = sorted(measure.middle, key=lambda name: -measure.middle[name])
        if len(ranked) > 1 and measure.high[ranked[1]] >= measure.low[ranked[0]]:
            words += f" By {measure.name}, {ranked[0]} and {ranked[1]} could change places."
    apart = [
        name
        for name in found.names
        if found.fanova is not None
        and found.ped_anova is not None
        and name in found.fanova.middle
        and (found.fanova.low[name] > found.ped_anova.high[name] or found.ped_anova.low[name] > found.fanova.high[name])
        and abs(found.fanova.middle[name] - found.ped_anova.middle[name]) >= 0.1
    ]
    if apart:
        words += f" The two disagree on {', '.join(apart)}: in no repetition do they meet."
    return words


def _measure(of: Compared) -> Importances:
    names = of.parameters
    conditional = tuple(n for n in names if any(n not in config for config in of.configs))
    if why_not := _why_not(of):
        return Importances(names, conditional=conditional, why_not=why_not)
    import numpy as np
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    everywhere = [name for name in names if name not in conditional]
    everything = thinned(len(of), MOST_TRIALS)
    forests: list[dict[str, float]] = []
    estimates: list[dict[str, float]] = []
    for repeat in range(1 + REPEATS):
        trees, drawn = _TREES, everything
        if repeat:
            draw = np.random.default_rng(repeat).integers
            trees, drawn = _TREES_RESAMPLED, draw(len(of), size=min(len(of), MOST_RESAMPLED)).tolist()
        forest = FanovaImportanceEvaluator(n_trees=trees, max_depth=_DEPTH, seed=repeat)
        forests.append(_evaluate(of, _in_units(of, everywhere, drawn), everywhere, forest))
        estimates.append(_evaluate(of, [of.frozen[i] for i in drawn], names, PedAnovaImportanceEvaluator()))
    by_fanova, by_ped_anova = _summary("fANOVA", forests), _summary("PED-ANOVA", estimates)
    known = [measure for measure in (by_fanova, by_ped_anova) if measure is not None]
    if not known:
        return Importances(names, conditional=conditional, why_not="No hyperparameter can be told to matter.")
    mean = {n: [m.middle[n] for m in known if n in m.middle] for n in names}
    # What only one measure knows has a share of other names, and can't be weighed against the rest: it comes last.
    last = conditional if by_fanova is not None else ()
    order = sorted(names, key=lambda name: (name in last, -sum(mean[name]) / max(1, len(mean[name]))))
    alone = min(1.0, sum(forests[0].values())) if forests[0] else None
    return Importances(tuple(order), by_fanova, by_ped_anova, alone, conditional)


def _why_not(of: Compared) -> str:
    if len(of.parameters) < 2:
        return (
            f"{of.parameters[0] if of.parameters else 'No hyperparameter'} alone differs: nothing to weigh it against."
        )
    if of.count < FEWEST:
        return f"Importances need {FEWEST} trials at one resource."
    if len(set(of.values)) < 2:
        return f"All trials have the same {of.metric}."
    return ""


def _evaluate(of: Compared, trials: Sequence[FrozenTrial], names: Sequence[str], evaluator: Any) -> dict[str, float]:
    """The importances by raw name; empty where the evaluator can't."""
    from optuna.importance import get_param_importances

    if len(names) < 2:
        return {}
    with quiet():
        try:
            params = [name for name in (escaped(n) for n in names) if any(name in t.params for t in trials)]
            found = get_param_importances(study_of(of, trials), evaluator=evaluator, params=params, normalize=False)
        except (ValueError, RuntimeError, ArithmeticError):  # of a sample with one value, or of no variance
            return {}
    values = {name: max(0.0, float(found.get(escaped(name), 0.0))) for name in names}
    total = sum(values.values())
    return values if math.isfinite(total) and total > 0 else {}


def _shares(found: dict[str, float]) -> dict[str, float]:
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}


def _summary(name: str, found: Sequence[dict[str, float]]) -> Measure | None:
    """The first as it is, and the ends over all; None without it."""
    if not found[0]:
        return None
    shares = [_shares(one) for one in found if one]
    return Measure(
        name,
        shares[0],
        {n: min(share[n] for share in shares) for n in shares[0]},
        {n: max(share[n] for share in shares) for n in shares[0]},
    )


def _in_units(of: Compared, names: Sequence[str], drawn: Sequence[int]) -> list[FrozenTrial]:
    """The trials of these indices with each hyperparameter as a number from 0 to 1."""
    from optuna.distributions import FloatDistribution
    from optuna.trial import create_trial

    unit: dict[str, BaseDistribution] = dict.fromkeys(map(escaped, names), FloatDistribution(0.0, 1.0))
    return [
        create_trial(
            params={escaped(name): unit_of(of.configs[i][name], of.distributions[name]) for name in names},
            distributions=unit,
            value=of.values[i],
        )
        for i in drawn
    ]


def unit_of(value: Any, known: BaseDistribution) -> float:
    """Where in its distribution a value lies, from 0 to 1; a choice, or a whole number, in the middle of its share."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(known, CategoricalDistribution):
        index = next((i for i, c in enumerate(known.choices) if c == value and type(c) is type(value)), None)
        if index is None:
            index = int(known.to_internal_repr(value))
        return (index + 0.5) / len(known.choices)
    assert isinstance(known, FloatDistribution | IntDistribution)
    half = 0.5 if isinstance(known, IntDistribution) else 0.0
    low, high, at = float(known.low) - half, float(known.high) + half, float(value)
    if known.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5
