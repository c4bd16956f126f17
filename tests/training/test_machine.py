"""What settings leave to the machine is decided once, said, kept with the run, and no part of what the run is."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_task import RedTask

from star.common.errors import RunStopped, UserError
from star.config import config_hash, identity, load, read_config
from star.models.memory import must_offload, needed
from star.models.shapes import SD35_MEDIUM
from star.training import guards, machine
from star.training.credit import check_maps
from star.training.folder import RunFolder
from star.training.machine import as_begun, check_deterministic, decisions, placed, settled
from star.training.trainer import Trainer

CPU, GPU = (SimpleNamespace(device=torch.device(kind), num_processes=1) for kind in ("cpu", "cuda"))
GIB = 2**30


@pytest.fixture
def faster(monkeypatch):
    """Sets which kernel is faster from now on."""
    return lambda kernel: monkeypatch.setattr(machine.kernels, "faster", lambda: kernel)


def test_a_run_goes_on_with_the_kernels_that_it_was_begun_with(make_config, faster, capsys):
    config = make_config("train.epochs=2", "model.kernels=auto")
    faster("torch")
    trainer = Trainer(config, RedTask())
    trainer.run()
    assert "star: note: matrix products with frozen weights by torch (model.kernels=torch)\n" in capsys.readouterr().err
    assert read_config(Path(config.run, "config.yaml")).model.kernels == "torch"
    faster("onednn")
    assert Trainer(config, RedTask()).base.config.kernels == "torch"
    assert Trainer(make_config("train.epochs=2", "model.kernels=torch"), RedTask()).run() == trainer.folder.summary()
    with pytest.raises(UserError, match="was begun with model.kernels=torch, .* other digits with onednn"):
        Trainer(make_config("train.epochs=2", "model.kernels=onednn"), RedTask())


def test_a_measurement_goes_on_with_the_kernels_that_it_was_begun_with(make_config, faster, tmp_path):
    folder, auto = tmp_path / "measured", make_config("model.kernels=auto")
    faster("torch")
    assert as_begun(auto, folder).model.kernels == "torch"
    faster("onednn")
    assert as_begun(auto, folder) == as_begun(make_config("model.kernels=torch"), folder)
    assert as_begun(auto, folder).model.kernels == "torch"
    with pytest.raises(UserError, match=f"{folder} was begun with model.kernels=torch, .* with onednn.* delete the folder"):
        as_begun(make_config("model.kernels=onednn"), folder)
    (folder / "kernels.txt").write_text("")
    assert as_begun(auto, folder).model.kernels == "onednn"


def test_what_is_left_to_the_machine_is_no_part_of_a_run(make_config):
    words = ("model.kernels=onednn", "model.offload=true", "model.decode_batch=1", "train.ratio_tolerance=1")
    hashes = {config_hash(identity(make_config(*some))) for some in ((), *((word,) for word in words), words)}
    assert len(hashes) == 1
    assert config_hash(identity(make_config("model.attention=math"))) not in hashes


def test_encoders_rest_where_they_would_not_fit(monkeypatch):
    config = load(["scale=paper", "preset=gpu8"])
    assert config.model.offload is None
    need = needed(load(["scale=paper", "preset=gpu8", "model.offload=false"]), SD35_MEDIUM).gpu
    assert need > needed(config, SD35_MEDIUM).gpu
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    assert must_offload(config, SD35_MEDIUM, need, 1) and not must_offload(config, SD35_MEDIUM, need / 0.89, 1)
    for total, rests, told in ((24 * GIB, True, "rest in main memory"), (1000 * GIB, False, "stay on the GPU")):
        monkeypatch.setattr(
            machine.torch.cuda, "get_device_properties", lambda device, total=total: SimpleNamespace(total_memory=total)
        )
        chosen = settled(config, RunFolder(Path("nowhere")), GPU)
        assert chosen.model.offload is rests
        (line,) = decisions(config, chosen)
        assert told in line and f"(model.offload={str(rests).lower()})" in line
        assert placed(config, GPU.device, 1).offload is rests  # for an evaluation of the base, too
    kept = load(["scale=paper", "model.offload=true"])
    assert placed(kept, GPU.device, 1).offload is True and placed(config, CPU.device, 1).offload is False
    assert settled(kept, RunFolder(Path("nowhere")), GPU) == kept and decisions(kept, kept) == []
    assert settled(config, RunFolder(Path("nowhere")), CPU).model.offload is False


@pytest.mark.parametrize("method", ["sga", "sga_flipped"])
def test_an_arm_without_deterministic_kernels_is_refused_on_a_gpu(method):
    asked = load(["scale=paper", "task=pickscore", f"method={method}", "train.deterministic=true"])
    check_deterministic(asked, torch.device("cpu"))
    check_deterministic(load(["scale=paper", "task=pickscore", f"method={method}"]), torch.device("cuda"))
    check_deterministic(load(["scale=paper", "task=pickscore", "train.deterministic=true"]), torch.device("cuda"))
    with pytest.raises(UserError, match=f"train.deterministic=true: method.arm={method} needs gradients through bicubic"):
        check_deterministic(asked, torch.device("cuda"))
    base = SimpleNamespace(device=torch.device("cuda"), latent_shape=(4, 16, 16), patch=2)
    with pytest.raises(UserError, match=f"method.arm={method} needs gradients through bicubic"):
        check_maps([load(["train.deterministic=true"]), asked], RedTask(), base)  # as measurements of many arms ask


def test_an_attention_kernel_that_is_not_deterministic_is_refused_on_a_gpu():
    for kernel in ("flash", "efficient", "cudnn"):
        asked = load(["scale=paper", "train.deterministic=true", f"model.attention={kernel}"])
        check_deterministic(asked, torch.device("cpu"))
        with pytest.raises(UserError, match="model.attention=cudnn adds up") if kernel == "cudnn" else nullcontext():
            check_deterministic(asked, torch.device("cuda"))


def test_a_kernel_without_a_deterministic_version_is_one_line():
    """As torch says it; any other error is left as it is."""
    told = "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms'."
    strict, loose = load(["train.deterministic=true"]), load([])
    line = "^train.deterministic=true: cumsum_cuda_kernel does not have a deterministic implementation; leave "
    with pytest.raises(RunStopped, match=line), guards.limits(strict):
        raise RuntimeError(told)
    for config, text in ((loose, told), (strict, "another")):
        with pytest.raises(RuntimeError, match=text[:20]), guards.limits(config):
            raise RuntimeError(text)


def test_deterministic_kernels_are_asked_for(make_config, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    Trainer(make_config(), RedTask())
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        trainer = Trainer(make_config("train.deterministic=true", "train.epochs=1"), RedTask())
        assert torch.are_deterministic_algorithms_enabled() and machine.os.environ["CUBLAS_WORKSPACE_CONFIG"]
        trainer.run()
    finally:
        torch.use_deterministic_algorithms(False)
