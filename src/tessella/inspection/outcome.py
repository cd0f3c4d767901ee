"""The result of an inspection."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..data.all_splits import SplitImages
from ..text import escape
from .findings import Finding
from .label_errors import LabelErrors
from .measuring import Measurements
from .settings import InspectionSettings


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of an inspection.

    images: what was inspected. findings: sorted by kind, the strongest first. counts: number of findings by kind.
    choices: what was chosen automatically, with reasons. label_errors: what confident learning says; None without
    labels. model, fingerprint: of the embeddings. seconds: duration by stage. notes: what was left out, and why.
    """

    images: SplitImages
    measured: Measurements
    findings: tuple[Finding, ...]
    counts: dict[str, int]
    model: str
    fingerprint: str
    choices: tuple[str, ...]
    notes: tuple[str, ...]
    label_errors: LabelErrors | None
    settings: InspectionSettings
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """Return the summary for JSON, without the findings."""
        images, labels = self.images, self.label_errors
        by_split = {split or "all": int((images.split == i).sum()) for i, split in enumerate(images.splits)}
        return dict(
            data=escape(images.images.origin),
            images=len(images),
            readable=int(self.measured.ok.sum()),
            splits=by_split,
            classes=list(images.images.classes),
            model=self.model,
            fingerprint=self.fingerprint,
            data_fingerprint=images.images.fingerprint,
            choices=list(self.choices),
            notes=list(self.notes),
            findings=self.counts,
            estimated_label_errors=None if labels is None else labels.estimated,
            probe_accuracy=None if labels is None else round(labels.accuracy, 4),
            settings=dataclasses.asdict(self.settings),
        )
