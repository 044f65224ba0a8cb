"""The JSON of requests and answers as pydantic models, from which FastAPI makes the OpenAPI document."""

from __future__ import annotations

import base64
from typing import Annotated, Literal, Self

from fastapi import UploadFile
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, Json

from raydis.diffusion.samplers import DEFAULT_SAMPLER, Sampler
from raydis.editor.units import UnitInfo
from raydis.metrics.scores import Scores
from raydis.metrics.telling import Kind
from raydis.serve.model import MAX_STEPS, EncodedImage, ServedModel
from raydis.serve.service import Edited

VALUE_LIMIT = 1e4  # far outside any unit's range, far inside what float32 computes with

UnitIndex = Annotated[int, Field(ge=0)]
UnitValue = Annotated[float, Field(ge=-VALUE_LIMIT, le=VALUE_LIMIT, allow_inf_nan=False, strict=True)]


class Health(BaseModel):
    """The service is alive and has a model."""

    status: Literal["ok"] = "ok"


class Problem(BaseModel):
    """An error (RFC 9457), sent as application/problem+json."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What was found, and what to do.")


class Unit(BaseModel):
    """What is known about one unit from the training data. Pictures and reports use the same labels."""

    index: int
    low: float
    median: float
    high: float
    kind: Kind = Field(
        description="factor: the unit describes one factor; mixed: several; none: it changes pictures, but describes "
        "no factor better than chance; inactive: exchanging it between images changes no picture; unknown: it was not "
        "measured, or the data has no factors."
    )
    factors: dict[str, float] = Field(
        description="The factors in its label, each with the share of its entropy that the unit explains, 0 to 1."
    )
    label: str = Field(description="The label in words; empty if the kind is unknown.")
    counts: dict[str, int] = Field(
        description="What the method counts for the unit, such as the `num_components` of its mixture; empty for most "
        "methods."
    )

    @classmethod
    def of(cls, unit: UnitInfo) -> Self:
        label = unit.label
        return cls(**vars(unit) | {"kind": label.kind, "factors": dict(label.factors), "label": str(label)})


class ModelFacts(BaseModel):
    """The model that answers, and its origin."""

    name: str
    version: int = Field(
        description="All replicas serve this version until another one is deployed, even if aliases move."
    )
    data_name: str = Field(description="The data set that it was trained on.")
    data_fingerprint: str
    images_seen: int = Field(description="Images seen in training.")
    seed: int
    created: AwareDatetime
    scores: Scores | None = Field(description="Scores with their protocol and estimator; null if not scored.")
    image_shape: tuple[int, int, int] = Field(
        description="Height, width and channels to which every upload is converted."
    )
    noise_shape: tuple[int, int, int] | None = Field(
        description="Channels, height and width of the noise that drawing starts from; null if it needs none."
    )
    unit_dim: int = Field(description="Width of the vector to which a unit's value is mapped.")
    max_steps: int | None = Field(description="Largest number of sampling steps; null if drawing takes a single pass.")
    default_steps: int | None = Field(
        description="Number of sampling steps where an edit names none; null if drawing takes a single pass."
    )
    units: list[Unit]

    @classmethod
    def of(cls, model: ServedModel) -> Self:
        editor, manifest = model.editor, model.editor.manifest
        return cls(
            name=model.ref.name,
            version=model.ref.version,
            data_name=manifest.data_name,
            data_fingerprint=manifest.data_fingerprint,
            images_seen=manifest.images_seen,
            seed=manifest.seed,
            created=manifest.created,
            scores=model.scores,
            image_shape=editor.image_shape,
            noise_shape=editor.method.noise_shape,
            unit_dim=editor.unit_dim,
            max_steps=model.max_steps,
            default_steps=model.default_steps,
            units=[Unit.of(unit) for unit in editor.units()],
        )


class EncodedUnit(BaseModel):
    """One unit of one image."""

    index: int
    value: float = Field(description="The unit's value, which `set` and `shift` of an edit change.")
    facts: dict[str, int | float] = Field(
        description="What the method states beside the value, by name, such as the `component` of the unit's mixture "
        "that it belongs to (-1 for none) and its posterior probability, the `responsibility`. Empty for most methods."
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
    units: list[EncodedUnit]

    @classmethod
    def of(cls, model: ServedModel, encoded: EncodedImage) -> Self:
        return cls(
            model=str(model.ref),
            units=[
                EncodedUnit(
                    index=index,
                    value=float(value),
                    facts={name: values[index].item() for name, values in encoded.facts.items()},
                )
                for index, value in enumerate(encoded.units)
            ],
        )


class EditForm(BaseModel):
    """The multipart form of an edit.

    A unit can be set or shifted, but not both. If no unit is, the image is reconstructed.
    """

    model_config = ConfigDict(extra="forbid")

    image: UploadFile = Field(description="A PNG, JPEG or WebP file.")
    set: Json[dict[UnitIndex, UnitValue]] = Field(
        default_factory=dict, description="New values by unit, a JSON object.", examples=['{"3": 1.2}']
    )
    shift: Json[dict[UnitIndex, UnitValue]] = Field(
        default_factory=dict, description="Amounts to add by unit, a JSON object.", examples=['{"0": -0.5}']
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the starting noise; it has no influence if details are kept."
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="Number of sampling steps, by default the model's `default_steps`; the time grows with it. Leave "
        "it out if the model's `max_steps` is null.",
    )
    sampler: Sampler | None = Field(
        None, description=f"Default: {DEFAULT_SAMPLER}; if details are kept, ddim, because only ddim can be inverted."
    )
    keep_details: bool = Field(
        False,
        description="Start from the image's own noise, which DDIM inversion finds in as many steps, so that what no "
        "unit describes stays. The edit takes twice as long.",
    )


class Edit(BaseModel):
    """An edited image as JSON."""

    model: str = Field(description="Name and version that answered.")
    units: list[float] = Field(description="The units' values after the edit, from which the image was drawn.")
    seed: int
    steps: int | None = Field(description="The number of steps that drew it; null if drawing takes a single pass.")
    sampler: Sampler | None = Field(description="The sampler that drew it; null likewise.")
    keep_details: bool
    image: str = Field(description="The PNG file, base64.")

    @classmethod
    def of(cls, model: ServedModel, edited: Edited, form: EditForm) -> Self:
        return cls(
            model=str(model.ref),
            units=edited.units.tolist(),
            seed=form.seed,
            steps=edited.sampling.steps,
            sampler=edited.sampling.sampler,
            keep_details=form.keep_details,
            image=base64.b64encode(edited.png).decode(),
        )
