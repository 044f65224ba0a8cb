"""What goes over the wire, as pydantic models: the source of the OpenAPI document."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal, Self

from fastapi import UploadFile
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, Json

from raydis.diffusion.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS, Sampler
from raydis.editor.units import UnitInfo
from raydis.metrics.scores import Scores
from raydis.metrics.telling import Kind
from raydis.serve.model import MAX_STEPS, Codes, ServedModel
from raydis.serve.service import Edited

VALUE_LIMIT = 1e4  # far outside any unit's range, far inside what float32 computes with

UnitIndex = Annotated[int, Field(ge=0)]
UnitValue = Annotated[float, Field(ge=-VALUE_LIMIT, le=VALUE_LIMIT, allow_inf_nan=False, strict=True)]


class Health(BaseModel):
    """The process answers and holds a model."""

    status: Literal["ok"] = "ok"


class Problem(BaseModel):
    """An error (RFC 9457), sent as application/problem+json."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What was found, and what to do.")


class Unit(BaseModel):
    """What is known of one unit over the training data. Pictures and reports name units by the same label."""

    index: int
    low: float
    median: float
    high: float
    kind: Kind = Field(
        description="factor: it tells one factor; mixed: several; none: it changes pictures, but tells no factor more "
        "than chance does; inactive: exchanging it between images changes no picture; unknown: it was not measured, or "
        "the data has no factors."
    )
    factors: dict[str, float] = Field(
        description="What it tells of the factors that its label names: share of a factor's entropy, 0 to 1."
    )
    label: str = Field(description="The same in words; empty where unknown.")
    counts: dict[str, int] = Field(
        description="What the method counts of it, such as `num_components` of its mixture; empty for most methods."
    )

    @classmethod
    def of(cls, unit: UnitInfo) -> Self:
        label = unit.label
        return cls(**vars(unit) | {"kind": label.kind, "factors": dict(label.factors), "label": str(label)})


class ModelFacts(BaseModel):
    """The model that answers, and where it comes from."""

    name: str
    version: int = Field(description="All replicas serve this one until another is deployed, wherever aliases move.")
    data_name: str = Field(description="Data set it was trained on.")
    data_fingerprint: str
    images_seen: int = Field(description="Images seen in training.")
    seed: int
    created: AwareDatetime
    scores: dict[str, Any] | None = Field(description="Scores with their protocol and estimator; null if not scored.")
    image_shape: tuple[int, int, int] = Field(description="Height, width, channels that every upload is brought to.")
    noise_shape: tuple[int, int, int] | None = Field(
        description="Channels, height and width of the noise that drawing starts from; null where it starts from none."
    )
    unit_dim: int = Field(description="Width of the vector that a unit's number becomes.")
    max_steps: int | None = Field(description="Most sampling steps of an edit; null where drawing takes a single pass.")
    units: list[Unit]

    @classmethod
    def of(cls, model: ServedModel) -> Self:
        editor, manifest = model.editor, model.editor.manifest
        scores = editor.metrics.get("scores")
        return cls(
            name=model.ref.name,
            version=model.ref.version,
            data_name=manifest.data_name,
            data_fingerprint=manifest.data_fingerprint,
            images_seen=manifest.images_seen,
            seed=manifest.seed,
            created=manifest.created,
            scores=Scores.from_dict(scores).to_dict() if scores else None,  # one layout, whichever was stored
            image_shape=editor.image_shape,
            noise_shape=editor.method.noise_shape,
            unit_dim=editor.unit_dim,
            max_steps=model.max_steps,
            units=[Unit.of(unit) for unit in editor.units()],
        )


class UnitCode(BaseModel):
    """One unit of one image."""

    index: int
    value: float = Field(description="The unit's number, which `set` and `shift` of an edit change.")
    facts: dict[str, int | float] = Field(
        description="What the method states beside it, by name, such as the `component` of the unit's mixture that it "
        "belongs to, -1 for none, and the posterior probability of that, `responsibility`. Empty for most methods."
    )


class Encoding(BaseModel):
    """Units of one image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "quickstart@3",
                    "units": [
                        {"index": 0, "value": -0.83, "facts": {"component": 2, "responsibility": 0.998}},
                        {"index": 1, "value": 1.27, "facts": {"component": 0, "responsibility": 0.751}},
                    ],
                }
            ]
        }
    )

    model: str = Field(description="Name and version that answered.")
    units: list[UnitCode]

    @classmethod
    def of(cls, model: ServedModel, codes: Codes) -> Self:
        return cls(
            model=str(model.ref),
            units=[
                UnitCode(
                    index=index,
                    value=float(value),
                    facts={name: values[index].item() for name, values in codes.facts.items()},
                )
                for index, value in enumerate(codes.units)
            ],
        )


class EditForm(BaseModel):
    """Fields of the multipart form of an edit. A unit may be set or shifted, not both; with neither, the image is
    reconstructed."""

    model_config = ConfigDict(extra="forbid")

    image: UploadFile = Field(description="A PNG, JPEG or WebP file.")
    set: Json[dict[UnitIndex, UnitValue]] = Field(
        default_factory=dict, description="New values by unit, a JSON object.", examples=['{"3": 1.2}']
    )
    shift: Json[dict[UnitIndex, UnitValue]] = Field(
        default_factory=dict, description="Amounts to add by unit, a JSON object.", examples=['{"0": -0.5}']
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the starting noise; without influence where details are kept."
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description=f"Sampling steps, by default {DEFAULT_STEPS}; the time taken grows with them. To be left out where "
        "the model's `max_steps` is null.",
    )
    sampler: Sampler | None = Field(
        None, description=f"Default: {DEFAULT_SAMPLER}; where details are kept ddim, the only one that can be inverted."
    )
    keep_details: bool = Field(
        False,
        description="Start from the image's own noise, found by DDIM inversion in as many steps, so that what no unit "
        "describes stays; takes twice as long.",
    )


class Edit(BaseModel):
    """An edited image as JSON."""

    model: str = Field(description="Name and version that answered.")
    units: list[float] = Field(description="The units' values after the edit, from which the image was drawn.")
    seed: int
    steps: int | None = Field(description="Those that drew it; null where drawing takes a single pass.")
    sampler: Sampler | None = Field(description="The one that drew it; null likewise.")
    keep_details: bool
    image: str = Field(description="The PNG file, base64.")

    @classmethod
    def of(cls, model: ServedModel, edited: Edited, form: EditForm) -> Self:
        return cls(
            model=str(model.ref),
            units=edited.units.tolist(),
            seed=form.seed,
            steps=edited.sampling.num_steps,
            sampler=edited.sampling.sampler,
            keep_details=form.keep_details,
            image=base64.b64encode(edited.png).decode(),
        )
