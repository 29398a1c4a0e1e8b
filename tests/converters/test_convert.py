"""From checkpoint to logits: many shapes of checkpoints, converted in float32 and run by LiteRT, and transformers."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from checkpoints import count_bytes_read, write_tokenizer
from numpy.typing import NDArray
from oracle_models import OracleConfig
from paths import EXAMPLE

from converters.convert import convert as convert_and_judge
from converters.family import Checkpoint, HeadRows
from converters.gate import ShortGate
from converters.gemma3n.family import Gemma3nCheckpoint, open_gemma3n
from converters.gemma3n.reference import Reference
from converters.gemma3n.sizes.matformer import SlicedCheckpoint
from converters.gemma3n.tensors import text_tensors
from converters.huggingface.configs import read_configs
from converters.huggingface.stored_tensors import StoredTensors
from converters.request import ConvertRequest
from converters.slices import Slice
from converters.verify import Failure, Quality, SizeReport, VerifyReport
from toolkit.base.errors import CheckpointError, EnvironmentFault, QualityError, SliceError, UsageError
from toolkit.base.files import Progress
from toolkit.bundle.manifest import Manifest
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

PREFILLS = (4, 16, 64)
SETTINGS = SessionSettings(threads=1, weight_cache="memory")
CONTEXT = 256


@functools.cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="gemma-edge-test-"))


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    shutil.rmtree(scratch(), ignore_errors=True)
    scratch.cache_clear()


def with_tokenizer(checkpoint: Path) -> Path:
    """The same checkpoint with a tokenizer, which these tests do not use."""
    directory = scratch() / f"{checkpoint.name}-checkpoint"
    if not directory.exists():
        shutil.copytree(checkpoint, directory)
        write_tokenizer(directory)
    return directory


def request(checkpoint: Path, output: Path, *, quant: str = "f32", sizes: tuple[Slice, ...] = ()) -> ConvertRequest:
    """Of the text groups."""
    recipes = {"text": quant, "ple": "f32" if quant == "f32" else "int8"}
    return ConvertRequest(
        checkpoint, output, recipes, groups=("text",), sizes=sizes, context=CONTEXT, prefill_sizes=PREFILLS
    )


def convert(wanted: ConvertRequest, *, progress: Progress | None = None) -> Manifest:
    """Without the gate, which has tests of its own."""
    return convert_and_judge(wanted, gate=None, progress=progress).manifest


@functools.cache
def bundle_of(config: OracleConfig) -> Path:
    """A float bundle of one of the oracle's configurations."""
    output = scratch() / f"{config.name}-bundle"
    convert(request(with_tokenizer(oracle.checkpoint_of(config)), output))
    return output


def open_session(bundle: Path) -> Session:
    return Session(Bundle(bundle), SETTINGS)


def greedy(session: Session, prompt: Sequence[int], count: int) -> list[int]:
    tokens: list[int] = []
    logits = session.feed(prompt)
    while len(tokens) < count:
        tokens.append(int(np.argmax(logits)))
        logits = session.decode(tokens[-1])
    return tokens


@pytest.mark.reference
@pytest.mark.parametrize("config", oracle.CONFIGS, ids=str)
def test_a_float_bundle_gives_the_logits_of_transformers(config: OracleConfig) -> None:
    want = oracle.hf_logits(oracle.checkpoint_of(config), config.ids)
    assert logit_error(bundle_of(config), config.ids, want) < 2e-4  # seen: 2.5e-5


def logit_error(bundle: Path, ids: Sequence[int], want: NDArray[np.float32]) -> float:
    """The largest of all tokens, decoded one by one, and of those that a prefill leaves to decode."""
    with open_session(bundle) as session:
        decoded = np.stack([session.decode(token) for token in ids])
        first, prefilled = session.logits_for(ids)
    return float(max(np.abs(decoded - want).max(), np.abs(prefilled - want[first:]).max()))


@pytest.mark.reference
def test_what_keeps_norms_from_dividing_by_nothing_is_as_in_transformers(tmp_path: Path) -> None:
    checkpoint = with_tokenizer(oracle.faint_checkpoint(tmp_path / "faint"))
    convert(request(checkpoint, tmp_path / "bundle"))
    ids = oracle.CONFIGS[0].ids
    assert logit_error(tmp_path / "bundle", ids, oracle.hf_logits(checkpoint, ids)) < 2e-4


@pytest.mark.reference
def test_a_context_that_window_and_prefill_cover_needs_no_ring_and_keeps_the_window(tmp_path: Path) -> None:
    config = next(config for config in oracle.CONFIGS if config.name == "odd_pattern")
    directory = oracle.checkpoint_of(config)
    wanted = replace(request(with_tokenizer(directory), tmp_path / "bundle"), context=40, prefill_sizes=(4, 33))
    text = convert(wanted).text
    assert [cache.window for cache in text.kv_caches] == [None] * len(text.kv_caches)
    assert logit_error(tmp_path / "bundle", config.ids, oracle.hf_logits(directory, config.ids)) < 2e-4


@pytest.mark.reference
@pytest.mark.parametrize("config", oracle.CONFIGS, ids=str)
def test_a_float_bundle_writes_the_64_tokens_of_transformers(config: OracleConfig) -> None:
    with open_session(bundle_of(config)) as session:
        tokens = greedy(session, config.ids, 64)
    assert tokens == oracle.hf_greedy(oracle.checkpoint_of(config), config.ids, 64)


def caches(session: Session) -> list[NDArray[np.float32]]:
    """What later tokens may still read of each cache, in the order of positions."""
    visible = []
    for cache in session.text.kv_caches:
        first = 0 if cache.window is None else max(0, session.position - cache.window)
        rows = np.arange(first, session.position) % cache.rows
        buffers = session._caches.buffers
        visible += [buffers[cache.key].read()[:, :, rows], buffers[cache.value].read()[..., rows]]
    return visible


@pytest.mark.reference
@pytest.mark.parametrize("config", oracle.CONFIGS, ids=str)
def test_prefill_fills_the_caches_as_decode_does(config: OracleConfig) -> None:
    """Prefill skips the layers without a cache: the caches must not tell the difference."""
    with open_session(bundle_of(config)) as session:
        session.prefill(config.ids)
        prefilled = caches(session)
        session.truncate(0)
        for token in config.ids:
            session.decode(token)
        decoded = caches(session)
    for one, other in zip(prefilled, decoded, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_two_conversions_give_identical_bytes(tmp_path: Path, tiny: Path) -> None:
    for name, workers in (("a", 1), ("b", 3)):
        convert(replace(request(tiny, tmp_path / name, quant="int4"), workers=workers))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.fixture
def tiny() -> Path:
    return EXAMPLE


@pytest.mark.full
def test_a_size_computes_the_same_alone_and_among_others(tmp_path: Path, tiny: Path) -> None:
    """Nested pieces add up: float logits of each size in an elastic bundle against a bundle of that size alone."""
    slices = open_gemma3n(tiny).slices
    names = ["large", "small", "mid-wide"]
    convert(request(tiny, tmp_path / "elastic", sizes=tuple(slices[name] for name in names)))
    ids = [2, *np.random.default_rng(0).integers(6, 3000, 90).tolist()]
    with open_session(tmp_path / "elastic") as session:
        for name in names:
            convert(request(tiny, tmp_path / name, sizes=(slices[name],)))
            with open_session(tmp_path / name) as alone:
                _, want = alone.logits_for(ids)
            session.use(name)
            _, got = session.logits_for(ids)
            assert np.abs(got - want).max() < 1e-3, name


@pytest.mark.slow
def test_an_elastic_bundle_stores_each_weight_once(tmp_path: Path, tiny: Path) -> None:
    slices = open_gemma3n(tiny).slices
    both = convert(request(tiny, tmp_path / "both", sizes=(slices["large"], slices["small"])))
    large = convert(request(tiny, tmp_path / "large", sizes=(slices["large"],)))
    graphs = 1_500_000  # headers: another prefill for each prefill size, and another decode
    assert sum(f.bytes for f in both.files.values()) < sum(f.bytes for f in large.files.values()) + graphs
    assert both.groups["text"].parameters == large.groups["text"].parameters


@pytest.mark.slow
def test_a_conversation_may_change_its_size(tmp_path: Path, tiny: Path) -> None:
    slices = open_gemma3n(tiny).slices
    convert(request(tiny, tmp_path / "bundle", quant="int8", sizes=(slices["large"], slices["small"])))
    with open_session(tmp_path / "bundle") as session:
        session.feed([2, 50, 60, 70])
        session.use("small")
        logits = session.decode(80)
        session.use("large")
        assert np.isfinite(logits).all() and np.isfinite(session.decode(90)).all()
        assert session.position == 6


def test_sizes_without_common_caches_are_refused(tmp_path: Path, tiny: Path) -> None:
    whole = open_gemma3n(tiny).default_slice
    other = Slice("other", whole.layers[1:], whole.ffn_sizes[1:])
    with pytest.raises(SliceError, match="KV cache"):
        convert(request(tiny, tmp_path / "bundle", sizes=(whole, other)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"context": 1}, "context"),
        ({"context": 1 << 20}, "context"),
        ({"context": 15, "prefill_sizes": ()}, "prefill sizes"),
        ({"prefill_sizes": (16, 8)}, "prefill sizes"),
        ({"prefill_sizes": (1, 8)}, "prefill sizes"),
        ({"prefill_sizes": (32,)}, "at most 16"),
        ({"prefill_sizes": (8, 512)}, "at most the context"),
        ({"draft_tokens": 0}, "draft tokens: found 0, wanted 1 to "),
        ({"prefill_sizes": (8,), "draft_tokens": 8}, "draft tokens: found 8, wanted 1 to 7"),
    ],
)
def test_lengths_that_cannot_work_are_refused_before_any_work(
    tmp_path: Path, tiny: Path, change: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        convert(replace(request(tiny, tmp_path / "bundle"), **change))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_refused_bundle_leaves_nothing(tmp_path: Path, tiny: Path) -> None:
    def refuse(directory: Path, checkpoint: Checkpoint) -> VerifyReport:
        assert (directory / "manifest.json").is_file() and checkpoint.path == tiny
        quality = Quality(100, 1.0, 9.0, 0.1, 10.0, 99.0, 0.1)
        return VerifyReport({"large": SizeReport(quality, (Failure("KL divergence mean", 1.0, "at most 0.01"),))})

    with pytest.raises(QualityError, match=r"large: KL divergence mean 1, wanted at most 0\.01"):
        convert_and_judge(request(tiny, tmp_path / "bundle"), gate=refuse)
    assert list(tmp_path.iterdir()) == []


class Contradicting(Gemma3nCheckpoint):
    """Says of every token the opposite of what the checkpoint says."""

    def reference(self, slice_: Slice) -> Reference:
        return Opposite(super().reference(slice_).model)


class Opposite(Reference):
    def logits(self, hidden: NDArray[np.float32], *, head: HeadRows | None = None) -> NDArray[np.float32]:
        return -super().logits(hidden, head=head)


@pytest.mark.slow
def test_a_conversion_ends_at_the_gate_unless_told_not_to(tmp_path: Path, tiny: Path) -> None:
    gate = ShortGate(SETTINGS, tokens=32)
    wanted = replace(request(tiny, tmp_path / "bundle"), sizes=("small",))
    judged = convert_and_judge(wanted, gate=gate)
    assert judged.report is not None and judged.report.passed and judged.report.sizes.keys() == {"small"}
    wrong = replace(wanted, checkpoint=Contradicting(read_configs(tiny)), output=tmp_path / "wrong")
    with pytest.raises(QualityError, match=r"wrong: small: KL divergence"):
        convert_and_judge(wrong, gate=gate)
    assert not (tmp_path / "wrong").exists()
    assert convert_and_judge(wrong, gate=None).report is None and (tmp_path / "wrong").is_dir()


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path, tiny: Path) -> None:
    shutil.copytree(tiny, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("tokenizer.json", "*.py"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        convert(request(tmp_path / "checkpoint", tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_a_broken_tokenizer_is_refused_before_any_work(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.py"))
    (tmp_path / "checkpoint" / "tokenizer.json").write_text("{")
    monkeypatch.setattr("converters.convert.write_bundle", lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(CheckpointError, match=r"checkpoint/tokenizer.json, JSON"):
        convert(request(tmp_path / "checkpoint", tmp_path / "bundle"))


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["f32", "int8"])
@pytest.mark.parametrize("tensor", ["embed_tokens_per_layer", "layers.0.input_layernorm", "layers.1.mlp.up_proj"])
def test_a_weight_that_is_not_finite_is_refused_whatever_its_scheme(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, quant: str, tensor: str
) -> None:
    read = SlicedCheckpoint.read

    def broken(self: SlicedCheckpoint, name: str, *ranges: object) -> NDArray[np.float32]:
        values = read(self, name, *ranges)  # type: ignore[arg-type]
        if name == f"{tensor}.weight":
            values.reshape(len(values), -1)[1, 0] = np.nan
        return values

    monkeypatch.setattr(SlicedCheckpoint, "read", broken)
    with pytest.raises(CheckpointError, match=rf"{tensor}\.weight, row \d+: nan, not a finite number"):
        convert(request(tiny, tmp_path / "bundle", quant=quant))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_weight_that_is_not_finite_is_named_as_the_checkpoint_has_it_whatever_slice_is_cut(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    """Layers of a slice are renumbered, columns are cut, and files name their weights otherwise."""
    own = Slice("own", (0, 2, 3, 4, 5, 6), (16,) * 6)
    for layer, tensor in ((6, "mlp.down_proj"), (2, "altup.correction_coefs")):
        broken = tmp_path / f"checkpoint-{layer}"
        shutil.copytree(random_checkpoint, broken)
        stored = StoredTensors(broken)
        name = f"model.layers.{layer}.{tensor}.weight"
        info = stored.infos[name]
        stored.close()
        with open(broken / info.file, "r+b") as file:
            file.seek(info.begin + 2 * info.shape[1] * 4)
            file.write(np.float32(np.nan).tobytes())
        with pytest.raises(CheckpointError) as caught:
            convert(request(broken, tmp_path / "bundle", sizes=(own,)))
        assert caught.value.file == str(broken / info.file)
        assert caught.value.place == f"tensor {name}, row 2"
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "says"), [(None, "the file has changed since"), (1_000_000, "ends at byte .* now: it has changed since")]
)
def test_a_checkpoint_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, tiny: Path, size: int | None, says: str
) -> None:
    """One byte, or a cut."""
    shutil.copytree(tiny, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.py"))
    weights = tmp_path / "checkpoint" / "model.safetensors"

    def write(done: int, total: int) -> None:
        if size is not None:
            os.truncate(weights, size)
        else:
            with open(weights, "r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"x")

    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{says}"):
        convert(request(tmp_path / "checkpoint", tmp_path / "bundle"), progress=write)
    assert os.listdir(tmp_path) == ["checkpoint"]


DISK_FULL = """
import sys
from pathlib import Path
import converters.convert as convert
import converters.prepare as prepare
from toolkit.base.errors import EnvironmentFault

checkpoint, disk = Path(sys.argv[1]), Path(sys.argv[2])
# As if another program had taken the space since it was looked at.
prepare.require_room = lambda *_: None
request = convert.ConvertRequest(
    checkpoint, disk / "bundle", {"text": "f32"}, groups=("text",), context=256
)
if sys.argv[3] == "full":
    try:
        convert.convert(request, gate=None)
    except EnvironmentFault as error:
        print(error)
    print([path.name for path in disk.iterdir()])
else:
    convert.convert(request, gate=None)
    print(sorted(path.name for path in disk.iterdir()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "share", [pytest.param(0.1, marks=pytest.mark.full), 0.6, pytest.param(0.97, marks=pytest.mark.full)]
)
def test_a_disk_that_fills_up_is_named_and_leaves_nothing_and_a_rerun_works(
    tmp_path: Path, tiny: Path, share: float
) -> None:
    """A real file system of a share of what the bundle takes; then one that is large enough."""
    convert(replace(request(tiny, tmp_path / "bundle"), prefill_sizes=()))
    size = sum(path.stat().st_size for path in (tmp_path / "bundle").iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""set -e
mount -t tmpfs -o size={int(size * share)} tmpfs {disk}
{sys.executable} -c "$0" {tiny} {disk} full
mount -o remount,size={2 * size + 2**20} {disk}
{sys.executable} -c "$0" {tiny} {disk} roomy
"""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, DISK_FULL], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    fault, left, rerun = done.stdout.splitlines()
    assert str(disk) in fault and "no space left on device" in fault and "; free " in fault
    assert (left, rerun) == ("[]", "['bundle']")


@pytest.mark.reference
def test_a_slice_reads_little_more_of_the_checkpoint_than_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As E2B out of E4B: half of each feed-forward layer, and the last layers but two left out."""
    layers = ["sliding_attention", "full_attention"] * 4
    overrides: dict[str, Any] = {
        "num_hidden_layers": 8, "layer_types": layers, "intermediate_size": [16_384] * 8, "hidden_size": 64,
        "activation_sparsity_pattern": [0.95, *[0.0] * 7], "num_kv_shared_layers": 4, "vocab_size": 8192,
        "vocab_size_per_layer_input": 8192,
    }  # fmt: skip
    checkpoint = with_tokenizer(oracle.make_checkpoint(tmp_path / "wide", seed=1, dtype="bf16", **overrides))
    half = Slice("half", (0, 1, 2, 3, 6, 7), (8192,) * 6)
    wanted = request(checkpoint, tmp_path / "half", quant="int8", sizes=(half,))
    count = count_bytes_read(monkeypatch)
    convert(wanted)
    opened = open_gemma3n(checkpoint)
    source = SlicedCheckpoint(opened, half)
    kept = 2 * sum(math.prod(shape) for shape in text_tensors(source.config).values())
    whole = sum(tensor.stored_bytes for tensor in opened.tensors.values())
    # A row of the PLE table is read through its gap, which is smaller than a page.
    gaps = 2 * 8192 * 2 * source.config.ple_size
    samples = sum(min(tensor.stored_bytes, 16 * 4096) for tensor in opened.tensors.values())
    # The token embedding becomes two matrices: the table, and the output matrix.
    tied = 2 * 8192 * 64
    assert count() <= 1.001 * (kept + tied + gaps + samples) < 0.6 * whole
    assert count() >= kept


def test_too_small_a_disk_is_said_before_starting(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(EnvironmentFault, match="free disk space"):
        convert(request(tiny, tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["f32", "int8"])
def test_the_room_that_is_asked_for_is_what_the_bundle_takes(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, quant: str
) -> None:
    """Through a link to another directory: there the room is looked for."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "bundle")
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(
        "toolkit.base.files.require_free_space", lambda directory, count: asked.append((directory, count))
    )
    convert(request(tiny, tmp_path / "link", quant=quant))
    ((directory, wanted),) = asked
    assert directory == tmp_path / "disk"
    taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "disk" / "bundle").iterdir())
    assert taken <= wanted <= taken + 2**20


@pytest.mark.slow
def test_every_token_that_ends_a_text_is_in_the_manifest(tmp_path: Path, tiny: Path) -> None:
    shutil.copytree(tiny, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("*.py"))
    (tmp_path / "checkpoint" / "generation_config.json").write_text('{"eos_token_id": [106, 1, 106]}')
    manifest = convert(request(tmp_path / "checkpoint", tmp_path / "bundle"))
    assert manifest.text.stop_token_ids == (1, 5, 106)  # 5: what the template ends a turn with


@pytest.mark.slow
def test_progress_ends_at_its_total(tmp_path: Path, tiny: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(request(tiny, tmp_path / "bundle", quant="int8"), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)


def slice_arrays(directory: Path, target: Path, part: Slice) -> Path:
    """Slice a checkpoint by the recipe in gemma3n's documentation, by code of this test's own, and save it."""
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    target.mkdir()
    config = json.loads((directory / "config.json").read_text())
    text = config.get("text_config", config)
    ple, old = text["hidden_size_per_layer_input"], text["num_hidden_layers"]
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        array = tensor.float().numpy()
        pieces = name.split(".")
        if "layers" in pieces:
            at = pieces.index("layers") + 1
            layer = int(pieces[at])
            if layer not in part.layers:
                continue
            new = part.layers.index(layer)
            width = part.ffn_sizes[new]
            pieces[at] = str(new)
            if "gate_proj" in pieces or "up_proj" in pieces:
                array = array[:width]
            elif "down_proj" in pieces:
                array = array[:, :width]
        elif "embed_tokens_per_layer" in pieces:
            array = array.reshape(-1, old, ple)[:, list(part.layers)].reshape(len(array), -1)
        elif "per_layer_model_projection" in pieces:
            array = array.reshape(old, ple, -1)[list(part.layers)].reshape(-1, array.shape[1])
        tensors[".".join(pieces)] = np.ascontiguousarray(array)
    save_file(tensors, target / "model.safetensors")
    owners = old - text["num_kv_shared_layers"]
    text["num_kv_shared_layers"] = sum(layer >= owners for layer in part.layers)
    text["num_hidden_layers"] = len(part.layers)
    text["intermediate_size"] = list(part.ffn_sizes)
    for key in ("layer_types", "activation_sparsity_pattern"):
        text[key] = [text[key][layer] for layer in part.layers]
    (target / "config.json").write_text(json.dumps(config))
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        if (directory / name).exists():
            shutil.copyfile(directory / name, target / name)
    return target


@pytest.mark.reference
@pytest.mark.parametrize("name", ["small", "mid-narrow", "mid-wide", "large"])
def test_each_slice_gives_the_logits_of_transformers_on_a_sliced_checkpoint(
    tmp_path: Path, tiny: Path, name: str
) -> None:
    part = open_gemma3n(tiny).slices[name]
    sliced = slice_arrays(tiny, tmp_path / "sliced", part)
    ids = [2, *np.random.default_rng(1).integers(6, 3000, 120).tolist()]
    want = oracle.hf_logits(sliced, ids)
    convert(request(tiny, tmp_path / "bundle", sizes=(part,)))
    with open_session(tmp_path / "bundle") as session:
        first, got = session.logits_for(ids)
    assert np.abs(got - want[first:]).max() < 1e-3


@pytest.mark.full
@pytest.mark.reference
@pytest.mark.parametrize(
    "quant", [pytest.param("f32", marks=pytest.mark.full), pytest.param("int8", marks=pytest.mark.full), "int4"]
)
def test_a_slice_equals_the_bundle_of_a_checkpoint_sliced_first_bit_for_bit(
    tmp_path: Path, tiny: Path, quant: str
) -> None:
    part = open_gemma3n(tiny).slices["small"]
    sliced = slice_arrays(tiny, tmp_path / "sliced", part)
    convert(request(tiny, tmp_path / "ours", quant=quant, sizes=(part,)))
    convert(request(sliced, tmp_path / "first", quant=quant))
    for file in ("text_decoder.tflite", "embedder.tflite", "ple_00000.bin"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "first" / file).read_bytes(), file


@pytest.mark.reference
def test_a_conversation_goes_back_within_the_reach_of_its_rings_and_starts_over_beyond(tiny: Path) -> None:
    """A window of 16 and prefills of up to 64: rings of 80 rows in a context of 256."""
    config = next(config for config in oracle.CONFIGS if config.name == "long_prompt")
    ids, other = list(config.ids), list(config.ids[:100])
    directory = oracle.checkpoint_of(config)
    with open_session(bundle_of(config)) as session:
        ring = next(cache for cache in session.text.kv_caches if cache.window is not None)
        assert (ring.rows, ring.window) == (16 + 64, 16)
        session.feed(ids)
        assert session.rewind_to([*ids[:140], 5]) == 140
        logits = session.feed([5])
        assert np.abs(logits - oracle.hf_logits(directory, [*ids[:140], 5])[-1]).max() < 1e-3
        with pytest.raises(UsageError, match="within reach"):
            session.truncate(50)
        assert session.rewind_to([*other[:50], 7]) == 0
        logits = session.feed([*other[:50], 7])
        assert np.abs(logits - oracle.hf_logits(directory, [*other[:50], 7])[-1]).max() < 1e-3


@pytest.mark.full
@pytest.mark.reference
def test_a_conversation_grows_through_its_context_buckets(tmp_path: Path, tiny: Path) -> None:
    """Prefill and decode in contexts of 512 and of all 2,200, against transformers."""
    convert(replace(request(tiny, tmp_path / "bundle"), context=2200))
    ids = [2, *np.random.default_rng(3).integers(6, 3000, 2170).tolist()]
    want = oracle.hf_logits(tiny, ids)
    with open_session(tmp_path / "bundle") as session:
        assert session.text.context_buckets == (512,)
        for start, end in ((0, 500), (500, 2034), (2034, 2164)):
            session.prefill(ids[start:end])
            logits = np.stack([session.decode(token) for token in ids[end : end + 5]])
            assert np.abs(logits - want[end : end + 5]).max() < 1e-3
            session.truncate(end)
    with open_session(tmp_path / "bundle") as session:
        session.prefill(ids[:505])
        logits = np.stack([session.decode(token) for token in ids[505:520]])
        assert np.abs(logits - want[505:520]).max() < 1e-3


@pytest.mark.slow
def test_prefills_that_nobody_chose_fit_the_context(tmp_path: Path, tiny: Path) -> None:
    manifest = convert(replace(request(tiny, tmp_path / "bundle"), context=200, prefill_sizes=()))
    assert manifest.text.prefill_sizes == (16, 64)
