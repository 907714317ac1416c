"""The network against a plain reading of the spec, its vector, and its artefact."""

import dataclasses
import functools
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import namm
from namm import NAMM, NAMMConfig
from namm.features import FAINT, FEATURE_SETS, Channel, FeatureSet
from namm.reference_checkpoint import import_checkpoint
from tests.harm import HARM
from tests.memory.test_equivalence import random_namm
from tests.zoo import causal_model, ids


def test_the_vector_has_the_published_layout() -> None:
    theta = torch.arange(4172.0)
    tensors = NAMM.from_vector(theta).tensors()
    starts = {"w_qkv": 0, "b_qkv": 2400, "w_o": 2496, "b_o": 4096, "w_s": 4146, "b_s": 4171}
    assert {name: float(t.flatten()[0]) for name, t in tensors.items()} == starts
    assert tensors["w_qkv"].shape == (25, 96)
    assert NAMMConfig().size == 4172
    torch.testing.assert_close(NAMM.from_vector(theta).vector(), theta)


def test_scores_are_the_formulas_of_the_spec() -> None:
    network = random_namm()
    x = torch.randn(9, 25)
    p = network.tensors()
    q, k, v = (x @ p["w_qkv"] + p["b_qkv"]).split(32, dim=1)
    logits = q @ k.T / 32**0.5
    mixed = torch.stack([torch.softmax(logits[i, i:], 0) @ v[i:] for i in range(9)])
    r, u = (mixed @ p["w_o"] + p["b_o"]).split(25, dim=1)
    expected = ((x * (1 + u) + r) @ p["w_s"] + p["b_s"]).squeeze(1)
    torch.testing.assert_close(network.scores(x[None, None])[0, 0], expected, atol=1e-5, rtol=1e-5)
    padded = torch.cat([torch.randn(4, 25) * 9, x])  # meaningless slots at the old end change nothing
    torch.testing.assert_close(network.scores(padded[None, None])[0, 0, 4:], expected, atol=1e-5, rtol=1e-5)
    valid = torch.tensor([False] * 4 + [True] * 9)[None, None]
    torch.testing.assert_close(network.scores(padded[None, None], valid)[0, 0, 4:], expected, atol=1e-5, rtol=1e-5)


def test_zero_parameters_score_exactly_zero() -> None:
    assert bool((NAMM.zeros().scores(torch.randn(2, 3, 40, 25)) == 0).all())


def test_a_population_scores_each_row_with_its_candidate() -> None:
    thetas = torch.randn(3, 4172) * 0.2
    x = torch.randn(3, 2, 20, 25)
    together = NAMM.from_vector(thetas).scores(x)
    for row in range(3):
        alone = NAMM.from_vector(thetas[row]).scores(x[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_saving_and_loading(tmp_path: Path) -> None:
    config = NAMMConfig(update_interval=128, trained_on="needles")
    network = NAMM.from_vector(torch.randn(4172), torch.rand(17), torch.rand(17), config)
    network.save_pretrained(tmp_path)
    loaded = NAMM.from_pretrained(tmp_path)
    assert loaded.config == config
    for name in ("theta", "mean", "var"):
        assert torch.equal(getattr(loaded, name), getattr(network, name))
    assert "needles" in (tmp_path / "README.md").read_text()
    population = NAMM.from_vector(torch.randn(2, 4172))
    population.save_pretrained(tmp_path / "two")
    assert torch.equal(NAMM.from_pretrained(tmp_path / "two").theta, population.theta)


def test_pushing_uploads_what_saving_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, object] = {}

    class Hub:
        def create_repo(self, repo_id: str, exist_ok: bool) -> None:
            uploaded["repo"] = repo_id

        def upload_folder(self, repo_id: str, folder_path: str, **options: object) -> str:
            uploaded["files"] = sorted(p.name for p in Path(folder_path).iterdir())
            uploaded.update(options)
            return "https://hub/commit"

    monkeypatch.setattr(namm.artefact, "HfApi", Hub)
    assert NAMM.zeros().push_to_hub("me/memory", commit_message="first") == "https://hub/commit"
    assert uploaded == {
        "repo": "me/memory", "files": ["README.md", "config.json", "model.safetensors"], "commit_message": "first"
    }  # fmt: skip


def edit_config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def resign(folder: Path) -> None:
    edit_config(folder, sha256=namm.artefact._checksum((folder / "model.safetensors").read_bytes()))


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def altered(folder: Path, **tensors: torch.Tensor) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (truncate, namm.ArtefactError, "truncated or altered"),
        (lambda f: (truncate(f), resign(f)), namm.ArtefactError, "readable model.safetensors"),
        (lambda f: altered(f, b_s=torch.ones(1)), namm.ArtefactError, "sha256"),
        (lambda f: (altered(f, b_s=torch.full((1,), torch.nan)), resign(f)), namm.ArtefactError, "NaN"),
        (lambda f: (altered(f, w_s=torch.ones(26, 1)), resign(f)), namm.ArtefactError, "w_s of shape"),
        (lambda f: (altered(f, norm_mean=torch.ones(9)), resign(f)), namm.ArtefactError, "normalisation mean"),
        (lambda f: (altered(f, norm_var=-torch.ones(17)), resign(f)), namm.ArtefactError, "variances >= 0"),
        (lambda f: (altered(f, more=torch.ones(1)), resign(f)), namm.ArtefactError, "feature layout"),
        (lambda f: edit_config(f, format_version=2), namm.ArtefactError, "format version 1"),
        (lambda f: edit_config(f, features="papyrus"), namm.ConfigurationError, "Did you mean 'paper'"),
        (lambda f: edit_config(f, width=16), namm.ArtefactError, "w_qkv of shape"),
        (lambda f: edit_config(f, sha256=None), namm.ArtefactError, "a NAMM configuration"),
        (lambda f: edit_config(f, width=32.0), namm.ArtefactError, "whole number for width"),
        (lambda f: edit_config(f, update_interval=-5), namm.ArtefactError, "whole number for update_interval"),
        (lambda f: edit_config(f, features=["paper"]), namm.ArtefactError, "text for features"),
        (lambda f: (f / "config.json").write_bytes(b"\xff{"), namm.ArtefactError, "JSON"),
        (lambda f: edit_config(f, surprise=1), namm.ArtefactError, "surprise"),
        (lambda f: (f / "config.json").write_text("{"), namm.ArtefactError, "JSON"),
        (lambda f: (f / "config.json").write_text("[" * 10**5), namm.ArtefactError, "JSON"),
        (lambda f: (f / "config.json").write_text("[]"), namm.ArtefactError, "a JSON object"),
        (lambda f: edit_config(f, trained_on="\ud800"), namm.ArtefactError, "surrogates"),
        (lambda f: as_folder(f / "config.json"), namm.ArtefactError, "config.json; got Is a directory"),
        (lambda f: as_folder(f / "model.safetensors"), namm.ArtefactError, "model.safetensors; got Is a directory"),
        (lambda f: (f / "config.json").unlink(), namm.NotFoundError, "config.json"),
        (lambda f: (f / "model.safetensors").unlink(), namm.ArtefactError, "model.safetensors"),
    ],
)
def test_damaged_artefacts(tmp_path: Path, damage: object, error: type[Exception], match: str) -> None:
    random_namm().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=match):
        NAMM.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [4171, 2026])
def test_vectors_of_another_length(size: int) -> None:
    with pytest.raises(namm.ArtefactError, match="4172"):
        NAMM.from_vector(torch.zeros(size))


def scoring(config: NAMMConfig, signal: int) -> NAMM:
    """A memory whose score is one signal."""
    theta = torch.zeros(config.size)
    theta[-1 - config.feature_set.signals + signal] = 1.0
    return NAMM.from_vector(theta, config=config)


def kept(memory: NAMM | str, **options: object) -> list[list[list[int]]]:
    model = causal_model("llama")
    with torch.no_grad(), namm.attach(model, memory, namm.Budget(fraction=0.5, **options), 32) as handle:
        model(ids(1, 100))
        return handle.kept_positions(1)


def test_the_peak_is_the_observed_maximum() -> None:
    assert kept(scoring(NAMMConfig(features="extended"), 17)) == kept("observed-max")
    assert kept(scoring(NAMMConfig(features="compact"), 1)) == kept("observed-max")


def test_another_feature_set_joins_without_touching_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Total(Channel):
        """The sum of attention."""

        name = "total"

        def observe(self, state: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
            return state + attention.sum(-2, keepdim=True)

    monkeypatch.setitem(FEATURE_SETS, "total", FeatureSet(Total()))
    assert kept(scoring(NAMMConfig(features="total"), 0)) == kept(scoring(NAMMConfig(features="compact"), 0))


def test_signals_are_the_channels_the_peaks_together_and_their_neighbours() -> None:
    features = FEATURE_SETS["compact-rehearsed"]
    assert (features.channels, features.signals, features.features) == (3, 7, 7)
    attention = torch.tensor([[0.5, 0.1, 0.0, 0.0], [0.2, 0.3, 0.1, 0.0]])[None]
    state = features.rehearse(features.observe(torch.zeros(1, 3, 4), attention), attention[:, :1, :])
    mass, peak, echo, both, near_peak, near_echo, near_both = ((features.read(state)[0].T.exp() - 1) * FAINT).tolist()
    approx = functools.partial(pytest.approx, abs=1e-5)
    assert mass == approx([0.7, 0.4, 0.1, 0.0])
    assert peak == approx([0.5, 0.3, 0.1, 0.0])
    assert echo == approx([0.5, 0.1, 0.0, 0.0])
    assert both == approx([1.0, 0.4, 0.1, 0.0])
    assert near_peak == approx([0.5, 0.5, 0.5, 0.3])  # two slots to each side
    assert near_echo == approx([0.5, 0.5, 0.5, 0.1])
    assert near_both == approx([1.0, 1.0, 1.0, 0.4])


def test_a_memory_says_how_its_budget_is_spent() -> None:
    layer = scoring(NAMMConfig(features="compact", per="layer"), 1)
    assert kept(layer) == kept(layer, per="layer") != kept(layer, per="head")
    assert sum(map(len, kept(layer)[0])) == sum(map(len, kept("observed-max")[0]))


def reference_checkpoint(file: Path, **changes: object) -> Path:
    """A file laid out as the reference's (spec 12), with small matrices."""
    buffers = {
        f"stored_buffers_to_save.token_embedding_0_{kind}_{name}": torch.rand(1, 1, 1, 17)
        if name != "num" else torch.full((1, 1, 1, 17), 96)
        for kind in ("output", "online_new_output") for name in ("mean", "var", "num")
    }  # fmt: skip
    state = {"mean": torch.randn(4172), "best_member": torch.randn(4172), "sigma": torch.tensor(0.06), **buffers}
    state |= {k: v for k, v in changes.items() if k != "drop"}
    for name in changes.get("drop", ()):
        del state[name]
    torch.save({"evolution_state": state, "iter_num": 7, "best_val_loss": np.float64(0.5)}, file)
    return file


def test_importing_a_reference_checkpoint(tmp_path: Path) -> None:
    file = reference_checkpoint(tmp_path / "ckpt.pt")
    raw = torch.load(file, weights_only=False)["evolution_state"]
    network = import_checkpoint(file)
    assert torch.equal(network.theta, raw["mean"])
    assert torch.equal(network.mean, raw["stored_buffers_to_save.token_embedding_0_output_mean"].flatten())
    assert torch.equal(network.var, raw["stored_buffers_to_save.token_embedding_0_output_var"].flatten())
    prefixed = {f"_orig_mod.{k}": v for k, v in raw.items()}
    torch.save({"evolution_state": prefixed}, file)
    assert torch.equal(import_checkpoint(file).theta, network.theta)


@dataclasses.dataclass
class Code:
    """Something a pickle would have to run code for."""

    value: int = 0


@pytest.mark.parametrize("harm", ["cut", "flipped", "zeros"])
def test_a_damaged_reference_checkpoint_is_refused(tmp_path: Path, harm: str) -> None:
    file = reference_checkpoint(tmp_path / "ckpt.pt")
    whole, expected = file.read_bytes(), import_checkpoint(file)
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    for _ in range(1 if harm == "zeros" else 60):
        file.write_bytes(HARM[harm](whole, rng))
        try:
            network = import_checkpoint(file)
        except namm.ArtefactError:
            continue
        assert harm == "flipped", seed  # a bit of no account, such as one of a time stamp
        assert torch.equal(network.theta, expected.theta), seed
        assert torch.equal(network.mean, expected.mean), seed


def test_checkpoints_that_are_refused(tmp_path: Path) -> None:
    zero = torch.zeros(1, 1, 1, 17, dtype=torch.long)
    name = "stored_buffers_to_save.token_embedding_0_output"
    cases = [
        (reference_checkpoint(tmp_path / "a.pt", mean=torch.zeros(2026)), "4172 parameters"),
        (reference_checkpoint(tmp_path / "b.pt", **{f"{name}_num": zero}), "normalisation statistics"),
        (reference_checkpoint(tmp_path / "c.pt", drop=[f"{name}_mean"]), "output_mean"),
        (reference_checkpoint(tmp_path / "d.pt", mean=torch.full((4172,), torch.nan)), "NaN"),
        (reference_checkpoint(tmp_path / "e.pt", extra=Code()), "code, which is not run"),
    ]
    (tmp_path / "f.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:300])
    cases.append((tmp_path / "f.pt", "truncated"))
    torch.save([1, 2], tmp_path / "g.pt")
    cases.append((tmp_path / "g.pt", "evolution_state"))
    packed = tmp_path / "i.pt"
    with zipfile.ZipFile(tmp_path / "a.pt") as records, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as smaller:
        for name in records.namelist():
            smaller.writestr(name, records.read(name))
    cases.append((packed, "is compressed"))
    for file, match in cases:
        with pytest.raises(namm.ArtefactError, match=match):
            import_checkpoint(file)
    (tmp_path / "h.pt").mkdir()
    with pytest.raises(namm.ArtefactError, match=r"h\.pt; got Is a directory"):
        import_checkpoint(tmp_path / "h.pt")
    with pytest.raises(namm.NotFoundError, match=r"Did you mean 'g\.pt'"):
        import_checkpoint(tmp_path / "gg.pt")


def test_shipped_memories_are_loaded_by_name() -> None:
    assert NAMM.from_pretrained("builtin:universal").config.rehearses == "queries"
    with pytest.raises(namm.NotFoundError, match="Did you mean 'builtin:universal'"):
        NAMM.from_pretrained("builtin:univrsal")


def test_a_record_that_torch_would_skip_is_read(tmp_path: Path) -> None:
    """The directory's attributes have no checksum: one that is said to be a folder came back as it was in memory."""
    file = reference_checkpoint(tmp_path / "ckpt.pt")
    expected, data = import_checkpoint(file), bytearray(file.read_bytes())
    entry = data.index(b"PK\1\2")
    while entry >= 0:
        data[entry + 38] |= 0x10
        entry = data.find(b"PK\1\2", entry + 1)
    file.write_bytes(data)
    network = import_checkpoint(file)
    assert torch.equal(network.theta, expected.theta)
    assert torch.equal(network.mean, expected.mean)


def test_where_a_token_stands_in_its_head() -> None:
    features = FEATURE_SETS["levelled"]
    state = torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(3)) * 6
    state[1, 2] = 2.0  # a head in which all are alike
    read = dict(zip(features.names, features.read(state).unbind(-1), strict=True))
    assert features.channels == 3
    assert len(features.names) == 13
    for head in (0, 1):
        peak = state[head, 1]
        torch.testing.assert_close(read["level peak"][head], peak.mean().expand(40))
        torch.testing.assert_close(read["relative peak"][head], (peak - peak.mean()) / peak.std(correction=0))
    assert read["relative echo"][1].tolist() == [0.0] * 40
    assert features.read(state[..., :0]).shape == (2, 0, 13)


def test_a_linear_memory_scores_what_a_mixing_one_of_no_output_does() -> None:
    config = NAMMConfig(features="levelled")
    drawn = torch.randn(config.size, generator=torch.Generator().manual_seed(4)) * 0.3
    linear, mixing = (NAMM.from_vector(drawn, config=config) for _ in range(2))
    for network, output in ((linear, 0.0), (mixing, 1e-30)):  # which float32 cannot tell from nothing beside 1
        for name in ("w_o", "b_o"):
            network.tensors()[name].fill_(output)
    assert (linear.mixes, mixing.mixes) == (False, True)
    inputs = torch.randn(2, 3, 20, 13, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(linear.scores(inputs), mixing.scores(inputs))
