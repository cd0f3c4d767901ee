"""Why images are similar: `explain_likeness` finds the links between the positions of images and of another one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._version import __version__
from ..data.names import LINKED
from ..errors import ImageError, WeightsError
from ..inputs import AnyImage
from ..predictor import Predictor
from ..records import valid_text
from ..storage import create_output_folder, write_bytes
from ..text import escape
from ..weights.catalogue import default_model
from .explanation import FailedExplanation
from .link_figures import draw_links
from .links import Links, link_vectors, position_vectors, strongest
from .opening import open_subject
from .page import STYLE, picture_card
from .storage import FileNames, write_arrays
from .subject import PreparedImage, Subject

SHOWN = 8  # links
REGIONS = 4  # along a side, between which links are shown


@dataclass(frozen=True)
class LinkExplanation:
    """Why an image is similar to another one: the links between their positions.

    a: the image, b: the one that it is compared with. model, fingerprint: what computed the embeddings.
    """

    a: PreparedImage
    b: PreparedImage
    links: Links
    model: str
    fingerprint: str

    status = "ok"

    @property
    def key(self) -> str:
        """The name of the image."""
        return self.a.key

    @property
    def question(self) -> str:
        """What is explained."""
        return f"Why similar to {self.b.key}?"

    @property
    def summary(self) -> str:
        """The similarity, and what the links are."""
        return f"cosine similarity {self.links.cosine:.3f}; links: {self.kind}"

    @property
    def kind(self) -> str:
        """Whether the links are exact, and how far to trust them if not."""
        if self.links.agreement is None:
            return "exact: they sum to the similarity"
        agreement = f"{self.links.agreement:.2f}"
        return f"measured by masking, not exact; their correlation with the effect of each position is {agreement}"

    def figure(self) -> bytes:
        """Return a PNG file with both images and their strongest links; UsageError `missing_dependency`."""
        return draw_links(self.a, self.b, self.links, count=SHOWN)

    def save(self, folder: str | Path, name: str | None = None) -> tuple[Path, Path]:
        """Write NAME.links.png and NAME.links.npz to a folder, as `Explanation.save` writes its files.

        Raises OutputError `output_failed`.
        """
        folder = create_output_folder(folder)
        stem = FileNames().new(self.key) if name is None else name
        figure, arrays = folder / f"{stem}{LINKED}.png", folder / f"{stem}{LINKED}.npz"
        write_bytes(figure, self.figure())
        self.save_arrays(arrays)
        return figure, arrays

    def save_arrays(self, path: str | Path) -> None:
        """Write the links and what belongs to them to a .npz file. Raises OutputError `output_failed`."""
        arrays = dict(
            tessella=np.array(__version__),
            key=np.array(escape(self.key)),
            like=np.array(escape(self.b.key)),
            model=np.array(valid_text(self.model)),
            fingerprint=np.array(self.fingerprint),
            cosine=np.array(self.links.cosine),
            links=self.links.values,
            map=self.links.map_a,
            map_of_like=self.links.map_b,
        )
        if self.links.agreement is not None:
            arrays["agreement"] = np.array(self.links.agreement)
        write_arrays(path, arrays)

    def as_dict(self) -> dict[str, object]:
        """Return the similarity, both maps and the strongest links between regions as JSON."""
        regions = self.links.regions(REGIONS, REGIONS)
        return dict(
            key=escape(self.key),
            status=self.status,
            like=escape(self.b.key),
            model=valid_text(self.model),
            fingerprint=self.fingerprint,
            cosine=self.links.cosine,
            exact=self.links.exact,
            agreement=self.links.agreement,
            regions=[list(grid) for grid in regions.grids],
            links=[dict(a=list(link.a), b=list(link.b), value=link.value) for link in strongest(regions, SHOWN)],
            map=self.links.map_a.tolist(),
            map_of_like=self.links.map_b.tolist(),
        )

    def _repr_html_(self) -> str:
        """Return HTML for Jupyter: both images with their strongest links."""
        return f"<style>{STYLE}</style>{picture_card(self.question, self.key, self.figure(), self.summary)}"


def explain_likeness(
    images: AnyImage | Iterable[object],
    like: AnyImage,
    model: str | Predictor | Subject | None = None,
    *,
    keys: Iterable[str] | None = None,
) -> Iterator[LinkExplanation | FailedExplanation]:
    """Explain why images are similar to the image `like`: one LinkExplanation per image, in order, as they are made.

    images, keys: one or many, as in `Predictor.records`. model: as in `explain`; None takes the model for photographs.
    A bad image is a FailedExplanation. Raises at once: ImageError if `like` cannot be read, UsageError `bad_argument`
    for a model without an embedding, WeightsError `non_finite` if that of `like` is not finite, and the errors of
    `tessella.load`.
    """
    subject = open_subject(default_model() if model is None else model)
    ((_, other),) = subject.prepare([like])
    if isinstance(other, ImageError):
        raise other
    of_other = position_vectors(subject.model, other.x)
    fingerprint = subject.predictor.fingerprint

    def one(key: str, image: PreparedImage | ImageError) -> LinkExplanation | FailedExplanation:
        if isinstance(image, ImageError):
            return FailedExplanation(key, image.code, str(image))
        try:
            links = link_vectors(position_vectors(subject.model, image.x), of_other)
        except WeightsError as error:
            return FailedExplanation(key, error.code, str(error))
        return LinkExplanation(image, other, links, subject.name, fingerprint)

    return (one(key, image) for key, image in subject.prepare(images, keys))
