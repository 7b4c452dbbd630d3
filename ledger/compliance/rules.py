"""What each compliance rule is called, how grave it is, and how it is said to a person who is not an engineer.

The facts come from `views.sql`; a sentence is a format string over them. Knows no feed. Invariant: every case that a view
can give has a sentence here, and every rule says what to do about a finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ERROR: Final = "error"  # a rule was broken, and the evidence says so
WARNING: Final = "warning"  # something that an honest member would have to explain, or that nobody could prevent
NOTICE: Final = "notice"  # worth knowing; nobody did anything wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to break a rule: the sentence for people, and its severity."""

    text: str
    severity: str = ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule: its id, a name, what it promises to the people whose data it is, and what to do when it was broken."""

    id: str
    title: str
    promise: str
    advice: str
    cases: Mapping[str, Case]


def _rule(id_: str, title: str, promise: str, advice: str, **cases: str | Case) -> Rule:
    found = {k.replace("_", "-"): c if isinstance(c, Case) else Case(text=c) for k, c in cases.items()}
    return Rule(id=id_, title=title, promise=promise, advice=advice, cases=found)


def _warn(text: str) -> Case:
    return Case(text=text, severity=WARNING)


def _note(text: str) -> Case:
    return Case(text=text, severity=NOTICE)


RULES: Final[Mapping[str, Rule]] = {
    rule.id: rule
    for rule in (
        _rule(
            "C1",
            "Use without a valid grant",
            "Nobody reads a row unless its owner allowed exactly that, and the permission is on record.",
            "Stop the training that used the data, ask the member for an explanation, and have its contributions excluded.",
            no_decision="{member} used the data set {dataset} ({action}) although no decision in its own record allowed it.",
            denied="{member} used the data set {dataset} ({action}) although the request had been denied.",
            other_act="{member} used the data set {dataset} and named a permission that was given for something else ({other}).",
            decision_twice="{member} used the data set {dataset} again under a permission that it had used before.",
            no_grant="{member} used the data set {dataset} ({action}); its permission rests on no grant at all.",
            unknown_grant="{member} used the data set {dataset} under grant {grant}, which did not exist when it was used.",
            replayed="{member} used the data set {dataset} under grant {grant}, which repeats an older one.",
            not_owner="{member} used the data set {dataset} under grant {grant} of {who}, who does not own that data set.",
            broken_chain="{member} used the data set {dataset}; grant {grant} was not handed on from the one before it.",
            not_addressed="{member} used the data set {dataset} under grant {grant}, which was not given to {who}.",
        ),
        _rule(
            "C2",
            "Use outside the purpose or the part that was allowed",
            "Data serve the purpose they were given for and no other, and only the part that was allowed is read.",
            "Treat it as a change of purpose: ask the owner, and exclude what was trained until there is an answer.",
            relabelled="{member} was allowed to use {dataset} to {asked}, and recorded that it used it to {did}.",
            more_rows="{member} was allowed to read {asked} rows of {dataset} and read {did}.",
            action="{member} used the data set {dataset} to {action}; grant {grant} does not allow that.",
            purpose="{member} used the data set {dataset} for {purpose}; grant {grant} does not cover that purpose.",
            columns="{member} read the columns {columns} of {dataset}; grant {grant} does not cover all of them.",
        ),
        _rule(
            "C3",
            "Use outside the time of the grant",
            "A permission begins and ends when it says so.",
            "Ask for a new grant before the data are used again, and exclude what was trained after the end.",
            expired="{member} used the data set {dataset} at {at}; grant {grant} had ended at {limit}.",
            early="{member} used the data set {dataset} at {at}; grant {grant} begins only at {limit}.",
            clock="{member} decided on {dataset} as if it were {at}, and recorded it at {limit}.",
        ),
        _rule(
            "C4",
            "Use after a permission was withdrawn",
            "A withdrawal counts at once for everybody who could know of it.",
            "Exclude what was trained after the withdrawal. For a warning, check that the use stopped within the grace.",
            after="{member} used the data set {dataset} although it had on record that grant {grant} was withdrawn.",
            late="{member} used the data set {dataset} at {at} or later; others attest that grant {grant} was gone by {limit}.",
            concurrent=_warn(
                "{member} used the data set {dataset} at {at}, after grant {grant} was withdrawn at {limit} by the clocks, "
                "but nothing shows that it could know."
            ),
            narrowed=_warn(
                "{member} used the data set {dataset} at {at}, after grant {grant} was narrowed at {limit} by the clocks, "
                "but nothing shows that it could know."
            ),
        ),
        _rule(
            "C5",
            "A permission was passed on wider than it was given",
            "Who passes a permission on can only make it smaller.",
            "The wider grant has no effect. Ask its author to withdraw it, and the owner whether to withdraw the first one.",
            unknown_parent="{member} passed on a permission for {dataset} that it did not know when it did so.",
            not_delegate="{member} passed on a permission for {dataset} that had not been given to it.",
            too_deep="{member} passed on a permission for {dataset} further than its owner allows.",
            wider="{member} passed on a permission for {dataset} that is wider than its own: {in}.",
            not_issuer=_warn(
                "{member} tried to change a permission for {dataset} that somebody else had given; it had no effect."
            ),
        ),
        _rule(
            "C6",
            "Training whose access to data was not recorded",
            "Every access to personal data is on record before anything learnt from it leaves the node.",
            "Ask the member which rows the training read, and exclude the contribution until that is clear.",
            not_logged="{member} published what run {run} learnt from {dataset}; that the run read any data is not on record.",
        ),
        _rule(
            "C7",
            "A contribution that no training explains",
            "Whatever is merged can be traced to the training that made it.",
            "Exclude the contribution until its author shows the run that made it.",
            no_run="{member} published contribution {number}, and no training on record has made it (run {run}).",
            run_twice="{member} published contribution {number} from run {run}, which it had published before.",
            kept_back="{member} published contribution {number} from run {run} although its own node had kept it back ({code}).",
        ),
        _rule(
            "C8",
            "A release with a contribution that may not be in it",
            "Only what enough independent members saw, and what nobody rightly refused, is merged.",
            "Make a new release without the contribution, and ask those who voted for this one why they did.",
            objected="Release {release}, proposed by {member}, contains a contribution that {number} members spoke against.",
            unwitnessed=(
                "Release {release}, proposed by {member}, contains a contribution confirmed by {number} other organisations; "
                "{needed} are required."
            ),
        ),
        _rule(
            "C9",
            "A model that is not the one agreed on",
            "The model that is released and served is exactly the one that the contributions give.",
            "Do not use this model. Compare how the members computed it; serve the one that the contributions give.",
            differs="Release {release}, proposed by {member}, should be model {model} by its contributions; signed was {signed}.",
            served_other="{member} says it serves release {release} and serves another model, {model}.",
            unreleased="{member} serves a model as release {release}, which was never agreed on.",
        ),
        _rule(
            "C10",
            "A model that still contains what had to be removed",
            "What a person asked to have removed leaves the models that are made and served after the deadline.",
            "Make and serve a release without it. What others learnt from it goes only by training again from before it.",
            served="{member} still serves release {release}, with a contribution that had to be removed by {limit}.",
            released="Release {release}, proposed by {member}, contains a contribution that had to be removed by {limit}.",
            learnt=_note(
                "{member} serves release {release}, which no longer contains a removed contribution; what others learnt while "
                "it was in remains ({depth} releases earlier)."
            ),
        ),
        _rule(
            "C11",
            "Privacy budget exceeded",
            "The sum of what all trainings may reveal stays within what the owner allowed.",
            "Stop using this data set; exclude the contributions beyond the budget.",
            spent="{member} used {spent} of the privacy budget of {limit} (epsilon) that grant {grant} allows for {dataset}.",
            unbounded="{member} used {dataset} without any limit on what is revealed; grant {grant} sets one ({limit}).",
        ),
        _rule(
            "C12",
            "Half of an act between two parties",
            "What concerns two parties is on record at both; a missing half shows what was left out.",
            "Ask the other party. If it never heard of it, somebody kept a record back or the network was interrupted.",
            not_accepted=_warn("{member} gave a permission for {dataset} that nobody has confirmed."),
            accepted_unknown=_warn("{member} confirmed a permission ({grant}) that nobody has given."),
            not_recorded=_warn(
                "{member} published contribution {number}, and no other member has recorded that it exists."
            ),
            done_unknown=_warn("{member} confirmed an erasure that nobody asked for."),
        ),
        _rule(
            "C13",
            "A member has fallen silent",
            "A record that stops is noticed, so that nobody is shown an old state for ever.",
            "Ask the member. If its node is running, fetch its record from several members: one may be holding it back.",
            silent=_warn("{member} has written nothing since {at}; the others have, until {limit}."),
        ),
        _rule(
            "C14",
            "A decision that comes out otherwise when it is repeated",
            "Anybody can repeat every decision on access and gets the same answer.",
            "Treat the access as not allowed. The program or the record of that member is not what it should be.",
            policy="{member} decided on {dataset} under a policy on what may leave its node that is not on record.",
            verdict="{member} recorded '{logged}' for access to {dataset}; the rules give '{computed}' ({reasons}).",
            reasons=_warn(
                "{member} recorded other reasons for its decision on {dataset} than the rules give ({reasons})."
            ),
        ),
        _rule(
            "C15",
            "An erasure that was asked for and not confirmed",
            "Who asks to have data erased gets an answer from everybody who held them.",
            "Ask the member to erase and to confirm. Until then the request is not fulfilled.",
            unconfirmed="{member} has not confirmed the erasure that {owner} asked for ({dataset}, by {limit}).",
            silent=_warn(
                "{member} was not there to confirm the erasure that {owner} asked for ({dataset}, by {limit})."
            ),
            late=_warn("{member} confirmed the erasure that {owner} asked for ({dataset}) at {at}, after {limit}."),
            still_held="This copy still holds a record about {dataset} of {member} that had to be erased by {limit}.",
        ),
        _rule(
            "C16",
            "More uses than were allowed",
            "A permission that is limited to a number of uses ends with the last of them.",
            "Exclude what was trained beyond the limit, and ask the owner for a new grant.",
            exceeded="{member} used {dataset} under grant {grant}: {number} uses, {limit} were allowed.",
            together=_warn(
                "{dataset} was used {number} times under grant {grant}, {limit} were allowed; {member} could not know of all."
            ),
        ),
    )
}
