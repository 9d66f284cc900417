"""Export a run as a web page that needs no server: the network runs in the visitor's browser."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexnet.data.dataset import Dataset
from alexnet.data.decode import decode
from alexnet.errors import AlexNetError, ImageError, RunError, counted, shell_quote
from alexnet.export.browser import ask, program
from alexnet.export.card import write_card
from alexnet.export.heat import has_heat
from alexnet.export.onnx import agreement, export, synthetic, temporary_folder
from alexnet.files import made_by_alexnet, sha256, user_cache, write_json, writing
from alexnet.inference.predict import predict
from alexnet.network.alexnet import AlexNet
from alexnet.page.describe import WEB, describe
from alexnet.progress import say
from alexnet.run import ModelConfig, RunFolder

OURS = Path(__file__).parent / "web"
RUNTIME, RUNTIME_SHA256 = "1.30.0", "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # of onnxruntime-web
# What is taken from its archive: `bundle` needs no other file but the WebAssembly, which runs in one thread on any host.
PARTS = {"ort.wasm.bundle.min.mjs": "ort.js", "ort-wasm-simd-threaded.wasm": "ort.wasm"}  # hosts know the type of .js
LIMITS = {"bytes": 1 << 30, "pixels": 50_000_000, "files": 1}  # pixels: what fits into the 4 GB of WebAssembly; files at a time
KEPT = {".html", ".js", ".css", ".json", ".onnx", ".wasm"}  # files that the browser keeps
VIEWS = {False: ["photo"], True: ["photo", "grad_cam"]}  # what the page shows
COMPARED = 100  # images in the browser, at most


def export_page(
    network: AlexNet, config: ModelConfig, dataset: Dataset | None, folder: RunFolder, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write the page of a run to the folder `out` if it agrees with the run; see `Run.export_page`."""
    runtime = _runtime()
    if (
        not overwrite
        and out.exists()
        and not made_by_alexnet(out / "comparison.json")
        and (out.is_file() or any(out.iterdir()))
    ):
        raise RunError(f"{out} holds what alexnet did not make: name another folder, or --overwrite")
    with temporary_folder(out) as part:
        model = part / "model.onnx"
        heat = has_heat(network) and config.preprocessing.view_count <= 2  # of ten views, none need be the whole image
        result = export(network, config, dataset, model, compact=True, heat=heat)
        (part / "model.onnx.json").unlink()
        _write(part, runtime)
        sizes = {name: (part / name).stat().st_size for name in ("model.onnx", "static/ort.wasm")}
        write_json(
            part / "model.json",
            {**describe(folder, config), "limits": LIMITS, "key": False, "files": sizes, "views": VIEWS[heat]},
        )
        if (out / "README.md").is_file():
            shutil.copy(out / "README.md", part)  # for its licence
        write_card(part / "README.md", folder, config, dataset, "model.onnx", overwrite=True)
        _keep_offline(part)
        result |= {"file": "model.onnx", "browser": _in_browser(network, config, dataset, part, out)}
        write_json(part / "comparison.json", result)
        size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        for file in sorted(file for file in part.rglob("*") if file.is_file()):
            target = out / file.relative_to(part)
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    return {**result, "file": str(out / "model.onnx"), "page": str(out), "page_bytes": size}


def _runtime() -> tarfile.TarFile:
    """Return the archive of onnxruntime-web from the user's cache; AlexNetError says how to get it."""
    archive = user_cache() / f"onnxruntime-web-{RUNTIME}.tgz"
    folder = shell_quote(archive.parent)
    get = f"npm pack --pack-destination {folder} onnxruntime-web@{RUNTIME}"
    if not archive.is_file():
        raise AlexNetError(f"the page needs onnxruntime-web {RUNTIME}, once: mkdir -p {folder} && {get}")
    if sha256(archive) != RUNTIME_SHA256:
        raise AlexNetError(f"{archive}: damaged, or not onnxruntime-web {RUNTIME}; get it again: {get}")
    return tarfile.open(archive)


def _write(folder: Path, runtime: tarfile.TarFile) -> None:
    """Write the files of the page that are the same for every run."""
    static = folder / "static"
    shutil.copytree(WEB, static)
    shutil.copytree(OURS, static, dirs_exist_ok=True)  # its `backend.js` takes the place of the server's
    for name in ("index.html", "offline.js"):
        (static / name).replace(folder / name)
    with runtime:
        for part, name in PARTS.items():
            content = runtime.extractfile(f"package/dist/{part}")
            assert content is not None
            (static / name).write_bytes(content.read())


def _keep_offline(folder: Path) -> None:
    """Tell the service worker which files to keep, and a version that changes with them."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in KEPT)
    names = ["./", *(file.relative_to(folder).as_posix() for file in files)]
    version = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()[:16]
    script = folder / "offline.js"
    head = f"const VERSION = {json.dumps(version)};\nconst FILES = {json.dumps(names)};\n"
    script.write_text(head + script.read_text(encoding="utf-8"), encoding="utf-8", newline="\n")


def _in_browser(
    network: AlexNet, config: ModelConfig, dataset: Dataset | None, folder: Path, out: Path
) -> dict[str, Any] | None:
    """Compare the page's answers with `predict` in float32, on validation images as files; None without a browser."""
    browser = program()
    if browser is None:
        say("no browser was found to compare the page in (CHROMIUM names one): only its network was compared")
        return None
    images = [_file(source) for source in _sources(dataset)]
    plain = config.model_copy(update={"precision": "float32"})
    ours = predict(network, plain, map(at_full_size, images), len(config.labels))
    answers = ask(browser, folder, images)
    pairs = [pair for pair in zip(ours, answers, strict=True) if not any("error" in answer for answer in pair)]
    if not pairs:
        raise RunError(f"{out} was not written: {browser} reads none of {counted(len(images), 'image')}")
    rows, theirs = (np.stack([_row(pair[i], config.labels) for pair in pairs]) for i in (0, 1))
    found = agreement(rows, theirs, out, int8=False, who=browser)
    return {"program": Path(browser).name, "images": len(pairs), "unread": len(images) - len(pairs), **found}


def _sources(dataset: Dataset | None) -> Iterator[Path | bytes | NDArray[np.uint8]]:
    """Yield validation images as they are stored, or made-up ones."""
    if dataset is None:
        yield from (image for image, _ in synthetic()[2])
        return
    rows = dataset.table.rows("val")
    yield from (dataset.table.source(row) for row in rows[:: -(-len(rows) // COMPARED)])


def at_full_size(image: bytes) -> bytes | NDArray[np.uint8]:
    """Return the pixels of an image file at full size, as browsers decode JPEGs; the file itself if it cannot be read."""
    try:
        return np.asarray(decode(image))
    except ImageError:
        return image


def _file(source: Path | bytes | NDArray[np.uint8]) -> bytes:
    """Return the bytes of an image file; pixels become a PNG."""
    if isinstance(source, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(source).save(file, "PNG")
        return file.getvalue()
    return source if isinstance(source, bytes) else source.read_bytes()


def _row(answer: dict[str, Any], labels: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the probabilities of an answer in the order of the labels."""
    found = {each["label"]: each["probability"] for each in answer["predictions"]}
    return np.array([found[label] for label in labels])
