from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from raydis.diffusion.samplers import SAMPLERS
from raydis.editor.editor import Editor
from raydis.errors import MetricError
from raydis.registry import ModelRef
from raydis.serve.api import create_app
from raydis.serve.images import MAX_BODY_BYTES
from raydis.serve.model import EncodedImage, ServedModel
from raydis.serve.schemas import Encoding, ModelFacts
from raydis.serve.service import Service
from tests.records import scores_of

FileOf = Callable[..., bytes]
Edit = Callable[..., object]


@pytest.fixture
def client(served: ServedModel) -> Iterator[TestClient]:
    with TestClient(create_app(Service(served)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def png(pictures: np.ndarray, file_of: FileOf) -> bytes:
    return file_of(pictures[0])


@pytest.fixture
def edit(client: TestClient, png: bytes) -> Edit:
    """Posts an edit of the first picture with some form fields."""

    def post(accept: str = "*/*", **fields: str) -> object:
        return client.post("/v1/edit", files={"image": png}, data=fields, headers={"Accept": accept})

    return post


def assert_problem(response, status: int, detail: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert detail in problem["detail"]


def test_health_is_ok(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def test_the_model_states_its_version_its_scores_and_the_range_of_each_unit(
    client: TestClient, served: ServedModel
) -> None:
    facts = client.get("/v1/model").json()
    assert (facts["name"], facts["version"]) == ("tiny", 1)
    assert facts["data_name"] == "shapes3d_procedural"
    assert facts["images_seen"] == 512
    scores = facts["scores"]  # in today's layout, whichever the checkpoint holds
    assert (scores["protocol"], scores["estimator"], scores["values"]) == ("search", "tree", {"factor_vae": 0.25})
    assert scores["sizes"] == {"mig": {"num_bins": 20}}
    assert facts["image_shape"] == [16, 16, 3]
    assert facts["noise_shape"] == [6, 4, 4]
    assert [unit["index"] for unit in facts["units"]] == [0, 1, 2, 3]
    assert all(unit["low"] < unit["median"] < unit["high"] for unit in facts["units"])
    assert (facts["max_steps"], facts["default_steps"]) == (200, 20)
    assert all(set(unit["counts"]) == {"num_components"} for unit in facts["units"])
    assert all(unit["counts"]["num_components"] >= 1 for unit in facts["units"])
    assert all((unit["kind"], unit["factors"], unit["label"]) == ("unknown", {}, "") for unit in facts["units"])
    assert "alias" not in facts  # it may name another version by now


def test_scores_have_one_shape_whatever_code_stored_them(editor: Editor) -> None:
    scores = scores_of(factor_vae=0.25, mig=0.5).to_dict()
    flat = {name: value for name, value in scores.items() if name not in ("values", "details")}
    flat |= scores["values"] | {"sizes": {}, "importance": [[0.5]], "num_active_units": 3}

    def answered(stored: Any) -> Any:
        metrics = {"scores": stored}
        opened = Editor(editor.method, editor.config, editor.manifest, metrics, image_shape=editor.image_shape)
        return ModelFacts.of(ServedModel(opened, ModelRef("tiny", 1))).model_dump(mode="json")["scores"]

    assert answered(scores) == scores
    assert answered(flat) == scores | {"sizes": {}, "details": {"importance": [[0.5]], "num_active_units": 3}}
    assert answered(None) is None
    with pytest.raises(MetricError, match="these are not scores: "):
        answered({"factor_vae": 0.25})


def test_raw_bodies_of_each_format_and_a_form_give_the_same_units(
    client: TestClient, pictures: np.ndarray, file_of: FileOf, served: ServedModel
) -> None:
    raw = client.post("/v1/encode", content=file_of(pictures[0]), headers={"Content-Type": "image/png"})
    assert raw.status_code == 200, raw.text
    form = client.post("/v1/encode", files={"image": file_of(pictures[0])})
    webp = client.post(
        "/v1/encode", content=file_of(pictures[0], "WEBP", lossless=True), headers={"Content-Type": "image/webp"}
    )
    assert raw.json() == form.json() == webp.json()
    assert raw.json()["model"] == "tiny@1"
    expected = served.encode([pictures[0]])[0]
    assert [unit["value"] for unit in raw.json()["units"]] == expected.units.tolist()
    for name in ("component", "responsibility"):
        assert [unit["facts"][name] for unit in raw.json()["units"]] == expected.facts[name].tolist()


def test_each_unit_has_the_facts_that_the_method_states_of_it(served: ServedModel) -> None:
    facts = {"component": np.int64([3, -1]), "responsibility": np.float32([0.75, 0.0])}
    encoded = EncodedImage(np.float32([0.5, 1.5]), np.zeros((2, 3), np.float32), facts)
    assert Encoding.of(served, encoded).model_dump()["units"] == [
        {"index": 0, "value": 0.5, "facts": {"component": 3, "responsibility": 0.75}},
        {"index": 1, "value": 1.5, "facts": {"component": -1, "responsibility": 0.0}},
    ]
    assert '"component":3,' in Encoding.of(served, encoded).model_dump_json()  # an index stays an integer
    bare = Encoding.of(served, EncodedImage(encoded.units, encoded.codes, {}))
    assert [unit.facts for unit in bare.units] == [{}, {}]


def test_an_image_of_another_size_is_brought_to_the_models(client: TestClient, file_of: FileOf) -> None:
    large, small = np.full((64, 64, 3), 90, np.uint8), np.full((16, 16, 3), 90, np.uint8)
    answers = [client.post("/v1/encode", files={"image": file_of(pixels)}).json() for pixels in (large, small)]
    assert answers[0] == answers[1]


def test_an_edit_gives_a_png_of_the_models_size_and_says_who_drew_it(edit: Edit) -> None:
    response = edit(set='{"3": 1.2}', shift='{"0": -0.5}', seed="1", steps="3")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.headers["raydis-model"] == "tiny@1"
    assert Image.open(io.BytesIO(response.content)).size == (16, 16)


def test_an_edit_as_json_holds_the_same_png_and_the_units_it_was_drawn_from(edit: Edit) -> None:
    fields = {"set": '{"3": 1.25}', "seed": "1", "steps": "3"}
    answer = edit(accept="application/json", **fields).json()
    assert base64.b64decode(answer["image"]) == edit(**fields).content
    assert answer["units"][3] == 1.25
    assert (answer["model"], answer["seed"], answer["steps"]) == ("tiny@1", 1, 3)


def test_seed_units_and_steps_each_change_the_picture_and_repeating_a_request_does_not(edit: Edit) -> None:
    requests = [{"steps": "3"}, {"steps": "3", "seed": "5"}, {"steps": "4"}, {"steps": "3", "set": '{"0": 3}'}]
    drawn = [edit(**fields).content for fields in requests]
    assert len(set(drawn)) == 4
    assert [edit(**fields).content for fields in requests] == drawn


def test_each_sampler_draws_another_picture_and_the_answer_names_it(edit: Edit) -> None:
    answers = [edit(accept="application/json", steps="3", sampler=sampler).json() for sampler in SAMPLERS]
    assert [answer["sampler"] for answer in answers] == list(SAMPLERS)
    assert len({answer["image"] for answer in answers}) == len(SAMPLERS)
    default = edit(accept="application/json", steps="3").json()
    assert (default["sampler"], default["image"]) == ("unipc", answers[SAMPLERS.index("unipc")]["image"])


def test_keeping_details_draws_by_ddim_whatever_the_seed(edit: Edit) -> None:
    kept = edit(accept="application/json", steps="3", keep_details="true").json()
    assert (kept["sampler"], kept["keep_details"]) == ("ddim", True)
    assert kept["image"] == edit(accept="application/json", steps="3", keep_details="true", seed="9").json()["image"]
    assert kept["image"] != edit(accept="application/json", steps="3", sampler="ddim").json()["image"]


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"sampler": "euler"}, "sampler: Input should be 'ddim', 'dpmpp_2m', 'dpmpp_2m_karras' or 'unipc'"),
        ({"keep_details": "perhaps"}, "keep_details: Input should be a valid boolean"),
        ({"keep_details": "true", "sampler": "unipc"}, "sampler=unipc cannot keep details: only ddim is inverted"),
        ({"set": '{"4": 0}'}, "no unit 4: this model has units 0 to 3"),
        ({"shift": '{"99": 0}'}, "no unit 99: this model has units 0 to 3"),
        ({"set": '{"1": 0}', "shift": '{"1": 0}'}, "unit 1 is both set and shifted"),
        ({"set": '{"-1": 0}'}, "greater than or equal to 0"),
        ({"set": '{"1": NaN}'}, "set.1: Input should be a finite number"),
        ({"set": '{"1": Infinity}'}, "set.1: Input should be a finite number"),
        ({"set": '{"1": 1e400}'}, "set.1: Input should be a finite number"),
        ({"set": '{"1": 1e39}'}, "set.1: Input should be less than or equal to 10000"),
        ({"set": '{"1": "2"}'}, "set.1: Input should be a valid number"),
        ({"set": '{"one": 2}'}, "set.one"),
        ({"set": "3=1.2"}, "set: Invalid JSON"),
        ({"set": "[1, 2]"}, "set: Input should be a valid dictionary"),
        ({"steps": "0"}, "steps: Input should be greater than or equal to 1"),
        ({"steps": "201"}, "steps: Input should be less than or equal to 200"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
        ({"seed": "-1"}, "seed: Input should be greater than or equal to 0"),
        ({"seed": str(2**63)}, "seed: Input should be less than 9223372036854775808"),
        ({"sets": "{}"}, "sets: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_name(edit: Edit, fields: dict[str, str], detail: str) -> None:
    assert_problem(edit(**fields), 422, detail)


def test_many_wrong_values_are_listed_in_short(edit: Edit) -> None:
    response = edit(set=json.dumps({str(unit): None for unit in range(1000)}))
    assert_problem(response, 422, "and 995 more")


@pytest.mark.parametrize("path", ["/v1/encode", "/v1/edit"])
class TestBothUploads:
    """What encode and edit refuse alike."""

    def test_bytes_that_are_no_image(self, client: TestClient, path: str) -> None:
        assert_problem(client.post(path, files={"image": b"hello"}), 422, "not a PNG, JPEG or WebP image")

    def test_a_truncated_image(self, client: TestClient, path: str, png: bytes) -> None:
        assert_problem(client.post(path, files={"image": png[:200]}), 422, "damaged or truncated")

    def test_too_many_pixels(self, client: TestClient, path: str) -> None:
        buffer = io.BytesIO()
        Image.new("1", (8192, 4096)).save(buffer, "PNG")
        assert_problem(client.post(path, files={"image": buffer.getvalue()}), 413, "8192 x 4096 pixels")

    def test_a_body_that_is_declared_too_large(self, client: TestClient, path: str) -> None:
        body = {"image": bytes(MAX_BODY_BYTES + 1)}
        assert_problem(client.post(path, files=body), 413, f"larger than {MAX_BODY_BYTES} bytes")

    def test_a_body_that_grows_too_large_without_a_declared_length(self, client: TestClient, path: str) -> None:
        def chunks() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            yield from [bytes(1 << 20)] * 11

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        assert_problem(client.post(path, content=chunks(), headers=headers), 413, "larger than")

    @pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-www-form-urlencoded"])
    def test_another_content_type(self, client: TestClient, path: str, kind: str) -> None:
        response = client.post(path, content=b"{}", headers={"Content-Type": kind})
        assert_problem(response, 415, f"the Content-Type is {kind}: send ")

    def test_no_content_type(self, client: TestClient, path: str) -> None:
        assert_problem(client.post(path, content=b"x"), 415, "the Content-Type is missing")

    def test_a_form_without_an_image(self, client: TestClient, path: str) -> None:
        assert client.post(path, files={"picture": b"x"}).status_code == 422

    def test_a_form_whose_image_is_text(self, client: TestClient, path: str) -> None:
        body = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--x--\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        assert client.post(path, content=body, headers=headers).status_code in (400, 422)

    @pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=y"])
    def test_a_malformed_form(self, client: TestClient, path: str, content_type: str) -> None:
        response = client.post(path, content=b"--x\r\nnonsense", headers={"Content-Type": content_type})
        assert_problem(response, 400, "")


def test_an_unknown_route_is_a_problem_too(client: TestClient) -> None:
    assert_problem(client.get("/v1/nothing"), 404, "Not Found")


def test_openapi_documents_both_bodies_every_error_and_an_example(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    encode, edit = paths["/v1/encode"]["post"], paths["/v1/edit"]["post"]
    kinds = {"image/png", "image/jpeg", "image/webp", "multipart/form-data"}
    assert set(encode["requestBody"]["content"]) == kinds
    assert set(edit["requestBody"]["content"]) == {"multipart/form-data"}
    for operation in (encode, edit):
        assert {"200", "400", "413", "415", "422", "503"} == set(operation["responses"])
        assert set(operation["responses"]["422"]["content"]) == {"application/problem+json"}
    assert set(edit["responses"]["200"]["content"]) == {"image/png", "application/json"}
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["Encoding"]["examples"][0]["model"] == "quickstart@3"
    assert schemas["EditForm"]["properties"]["set"]["examples"] == ['{"3": 1.2}']
    sampler = schemas["EditForm"]["properties"]["sampler"]["anyOf"][0]
    assert sampler["enum"] == list(SAMPLERS)
    assert "what no unit describes" in schemas["EditForm"]["properties"]["keep_details"]["description"]
    assert client.get("/docs").status_code == 200
