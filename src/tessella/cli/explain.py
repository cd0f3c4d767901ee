"""tessella explain: why a model predicts a class, what makes images similar, and what weights look like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..data.names import Skipped
from ..errors import UsageError
from ..text import count_of, printable
from .console import Command, complain, echo, echo_json, notice, show_progress
from .options import (
    argument,
    calibration_options,
    checkpoint_option,
    chosen_calibration,
    device_option,
    find_sources,
    finish,
    json_lines_option,
    load_predictor,
    option,
    policy_option,
    report_skipped,
    transform_option,
    warn_about_classes,
)

if TYPE_CHECKING:
    from ..data.source import Source
    from ..explain import Explanation, FailedExplanation, LinkExplanation, Subject
    from ..explain.output import ResultWriter
    from ..results import Prediction

    Result = Explanation | LinkExplanation | FailedExplanation
    Explain = Callable[[Iterable[Source]], Iterable[Result]]

OF_CLASSES = {"classes": "--class", "versus": "--versus", "method": "--method", "no_scores": "--no-scores"}
OF_CLASSES |= {"calibration": "--calibration", "no_calibration": "--no-calibration"}
EXCLUDED = {  # by what is explained: the options that do not apply
    "": {},
    "--like": OF_CLASSES,
    "--weights": {**OF_CLASSES, "like": "--like", "model": "--model", "strict": "--strict"},
}


class _ExplainCommand(Command):
    """Checks which options are combined before anything else, so that the error is about these."""

    def invoke(self, ctx: click.Context) -> Any:
        _what_is_explained(ctx.params)
        return super().invoke(ctx)


@click.command(
    cls=_ExplainCommand,
    needs_torch="explaining a model",
    examples=[
        "tessella explain photo.jpg",
        "tessella explain photos --out explanations.html",
        "tessella explain photo.jpg --class cat --versus dog --out explanations",
        "tessella explain photo.jpg --like other.jpg --out links.png",
        "tessella explain --weights convit_ti_p4_32.cifar10 --out weights",
    ],
)
@argument(
    "inputs",
    nargs=-1,
    metavar="[INPUT...]",
    help="File, folder, glob, .tar archive, .parquet file, URL of one of these in an object store, @FILE for a "
    "list of inputs, or - for a list on standard input.",
)
@transform_option
@policy_option
@option("--strict", group="Input", is_flag=True, help="Exit with status 3 if any input cannot be explained.")
@option(
    "-m",
    "--model",
    group="Model",
    metavar="NAME",
    help="Model: a name such as convmixer_768_32.in1k, hf-hub:ORG/REPO or local-dir:FOLDER.  [default: the built-in "
    "model for CIFAR-10, as in `classify`; with --like, the one for photographs]",
)
@checkpoint_option
@calibration_options
@device_option
@option(
    "--class",
    "classes",
    group="Explanation",
    multiple=True,
    metavar="NAME",
    help="Class to explain, by name or, if no class has this name, by index; can be given several times.  "
    "[default: the predicted class]",
)
@option(
    "--versus",
    group="Explanation",
    metavar="NAME",
    help="Class to compare with: the difference of the two logits is explained.",
)
@option(
    "--method",
    group="Explanation",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Method: exact, grad-cam, attention, integrated-gradients or occlusion; auto: the one with the best scores "
    "for this kind of model.",
)
@option(
    "--no-scores",
    group="Explanation",
    is_flag=True,
    help="Do not measure how faithful the maps are, which takes most of the time.",
)
@option(
    "--like",
    group="Explanation",
    metavar="IMAGE",
    help="Explain instead why images are similar to this one: the links between their positions.",
)
@option(
    "--weights",
    group="Explanation",
    metavar="MODEL",
    help="Draw the weights of a model instead; attention is shown for INPUT, one image.",
)
@option(
    "-o",
    "--out",
    group="Output",
    metavar="PATH",
    help="Folder for figures (.png) and arrays (.npz), or a .html file for one page; for a single image also a .png "
    "or .npz file. Without it, only text is printed.",
)
@json_lines_option
def explain(**arguments: Any) -> None:
    """Show which parts of an image support its class, and how faithful this map is.

    The scores of a map are compared with those of random maps. If it is no better, the verdict is "not faithful here".
    """
    subject = _what_is_explained(arguments)
    if subject == "--weights":
        _draw_weights(arguments)
    elif subject == "--like":
        _explain_images(arguments, "links", _start_links)
    else:
        _explain_images(arguments, "explanations", _start_explanations)


def _what_is_explained(arguments: dict[str, Any]) -> str:
    """Return "--weights", "--like", or "" for classes; UsageError for options that do not apply or are missing."""
    chosen = "--weights" if arguments["weights"] is not None else "--like" if arguments["like"] is not None else ""
    context = click.get_current_context()
    for name, flag in EXCLUDED[chosen].items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError("bad_argument", f"{chosen} and {flag} cannot be combined", hint=f"remove {flag}")
    count = len(arguments["inputs"])
    if chosen == "--weights" and arguments["out"] is None:
        raise UsageError("bad_argument", "--weights needs a folder for its pictures", hint="give --out FOLDER")
    if chosen == "--weights" and count > 1:
        raise UsageError("bad_argument", f"--weights takes at most one image, got {count}", hint="give one INPUT")
    if chosen != "--weights" and not count:
        raise UsageError("bad_argument", "there is nothing to explain", hint="give an image, or --weights MODEL")
    return chosen


def _explain_images(
    arguments: dict[str, Any], title: str, start: Callable[[dict[str, Any]], tuple[int, Explain]]
) -> None:
    """Print results as they come, and write them to --out.

    start: loads the model, and returns the number of results per image and what makes them.
    """
    from ..explain import FailedExplanation, open_output
    from ..pipeline import error_records

    skipped = Skipped()
    sources: Iterable[Source] = find_sources(arguments["inputs"], skipped)
    total, per_image = None, 1
    results: Iterable[Result] = []
    if is_listed := "-" not in arguments["inputs"]:  # a list on standard input may be endless
        sources = list(sources)
        total = len(sources)
        report_skipped(skipped)
        results = [FailedExplanation(one.key, one.status, one.message) for one in error_records(sources)]
    is_asked = bool(arguments["classes"] or arguments["versus"])
    output = open_output(arguments["out"], count=total, title=title.capitalize(), names_classes=is_asked)
    if not results:
        per_image, explain_all = start(arguments)
        if total is not None and per_image > 1:  # checked again: before, the classes were not known
            total *= per_image
            output = open_output(arguments["out"], count=total, title=title.capitalize(), names_classes=is_asked)
        results = explain_all(sources)
    counter = _ResultCounter(output, per_image, as_json=arguments["as_json"])
    try:
        for result in show_progress(results, total, title):
            counter.add(result)
    except BaseException:
        counter.interrupt()
        raise
    finally:
        if files := output.close():  # also after an interrupt, so that a page has what is finished
            notice(f"wrote {count_of(len(files), 'file')} to {printable(arguments['out'])}")
    if not is_listed:
        report_skipped(skipped)
    if not files and counter.good and not arguments["as_json"]:
        notice(f"to see the {title}, add --out FOLDER, or --out FILE.html for one page")
    finish(counter.good, counter.bad, arguments["strict"])


class _ResultCounter:
    """Prints and writes results, and counts images: bad ones are those with a result that is an error.

    per_image: the number of results of an image that can be read; they follow each other.
    """

    def __init__(self, output: ResultWriter, per_image: int, *, as_json: bool):
        self.good = self.bad = 0
        self._output, self._per_image, self._as_json = output, per_image, as_json
        self._key, self._expected, self._is_bad = "", 0, False  # of the image of the last result

    def add(self, result: Result) -> None:
        from ..explain import FailedExplanation

        files = self._output.add(result)
        is_failed = isinstance(result, FailedExplanation)
        self._count(result.key, is_failed)
        if self._as_json:
            echo_json(result.as_dict() | (dict(files=[str(path) for path in files]) if files else {}))
        elif isinstance(result, FailedExplanation):
            complain(printable(f"{result.key}: {result.status}: {result.message}"))
        else:
            for line in _lines(result, files):
                echo(printable(line))

    def _count(self, key: str, is_failed: bool) -> None:
        if key != self._key or not self._expected:  # another image
            self._key, self._expected, self._is_bad = key, self._per_image, False
            self.good += 1
        self._expected -= 1
        if is_failed and not self._is_bad:
            self.good, self.bad, self._is_bad = self.good - 1, self.bad + 1, True

    def interrupt(self) -> None:
        """Write that results are missing, if there are any others."""
        from ..explain import FailedExplanation

        if self.good + self.bad:
            message = "the command ended before they were explained"
            self._output.add(FailedExplanation("All other images", "interrupted", message))


def _lines(result: Explanation | LinkExplanation, files: list[Path]) -> Iterator[str]:
    """Yield the lines that describe a result to people."""
    from ..explain import Explanation

    yield result.key
    if isinstance(result, Explanation):
        versus = "" if result.versus is None else f", not {_share(result.versus)}"
        others = [one for one in result.predictions if one not in (result.target, result.versus)][:2]
        rest = f"; others: {', '.join(map(_share, others))}" if others else ""
        yield f"  class        {_share(result.target)}{versus}{rest}"
        yield f"  method       {result.map.method}: {result.reason}"
        for line in result.scores:
            interval = f"random maps {line.low:5.2f} to {line.high:5.2f}"
            yield f"  {line.name:<11} {line.value:5.2f}   {interval}   {line.comparison} ({line.goal} is better)"
        yield f"  verdict      {result.verdict}{result.verdict_reason and f': {result.verdict_reason}'}"
    else:
        yield f"  like         {result.b.key}"
        yield f"  similarity   {result.links.cosine:.4f}"
        yield f"  links        {result.kind}"
    if files:
        yield f"  files        {', '.join(map(str, files))}"


def _share(prediction: Prediction) -> str:
    return f"{prediction.label} {100 * prediction.probability:.1f} %"


# --- what is explained ------------------------------------------------------------------------------------------------


def _open(arguments: dict[str, Any], model: str) -> Subject:
    from ..explain import open_subject

    settings = {name: arguments[name] for name in ("device", "transform", "policy")}
    settings["calibration"] = chosen_calibration(arguments)
    subject = open_subject(model, checkpoint_path=arguments["checkpoint"], **settings)
    load_predictor(arguments, "classify", lambda: subject.predictor)  # shows what was chosen
    return subject


def _start_explanations(arguments: dict[str, Any]) -> tuple[int, Explain]:
    from ..explain import explain
    from ..weights.catalogue import default_model

    subject = _open(arguments, arguments["model"] or default_model("classify"))
    warn_about_classes(subject.name, arguments["checkpoint"])
    targets = dict.fromkeys(map(subject.find_class, arguments["classes"]))  # several names may be those of one class
    options = dict(versus=arguments["versus"], method=arguments["method"], score=not arguments["no_scores"])
    return len(targets) or 1, lambda sources: explain(sources, subject, classes=list(targets) or None, **options)


def _start_links(arguments: dict[str, Any]) -> tuple[int, Explain]:
    from ..explain import explain_likeness
    from ..weights.catalogue import default_model

    subject = _open(arguments, arguments["model"] or default_model())
    return 1, lambda sources: explain_likeness(sources, arguments["like"], subject)


def _draw_weights(arguments: dict[str, Any]) -> None:
    """Draw the weights of a model into the folder --out, and print the files."""
    from ..explain import explain_weights
    from ..explain.storage import check_folder

    image, folder = next(iter(arguments["inputs"]), None), check_folder(arguments["out"])
    files = explain_weights(_open(arguments, arguments["weights"]), folder, image)
    if arguments["as_json"]:
        echo_json({"model": arguments["weights"], "files": [str(path) for path in files]})
        return
    for path in files:
        echo(printable(str(path)))
