"""Compare imported networks with the libraries that made or read their files: torchvision, OpenCV and onnxruntime.

    python -m proof.imported PHOTOS     PHOTOS is a folder of photos, of which 100 are taken

Every file has random weights at full width. The logits of an imported run, which gets the photo's file, are compared with
those of the library, and the features of each layer of torchvision's network with what a hook there gets. torchvision
prepares the same file with its own transforms. Caffe's preparation is written out here, and OpenCV and onnxruntime get its
result. The exit code is 1 if a logit or a feature is off by more than `TOLERANCE` of the largest of the image, or if
torchvision's transforms give another pixel than ours.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from proof import foreign
from proof.pictures import encoded, picture

import alexnet
from alexnet.data.decode import stored_pixels
from alexnet.data.preprocessing import pixels, to_input
from alexnet.inference.forward import predict_logits

# torchvision registers C++ operators, which an AlexNet needs none of, and which need the very torch that it was built with.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
import torchvision  # noqa: E402
from torchvision.models import AlexNet_Weights  # noqa: E402

TOLERANCE = 1e-4  # of the largest logit of an image
COUNT = 100  # photos
MEAN = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)  # BGR (examples/00-classification.ipynb)

Array = NDArray[Any]
Logits = Callable[[Path], Array]  # of a photo's file


def of_run(run: alexnet.Run) -> Logits:
    """Return a function to the logits of an imported run, in the way of `predict`."""
    images = run.config.preprocessing

    def logits(path: Path) -> Array:
        return predict_logits(run.network, torch.from_numpy(pixels(path, images)[None].copy()), images, "float32")[0]

    return logits


def torchvision_files(folder: Path) -> Iterator[tuple[str, Path, Logits]]:
    """Write a network of torchvision in each layout; yield names, files, and torchvision's logits."""
    torch.manual_seed(0)
    network = torchvision.models.alexnet(num_classes=1000).eval()
    with torch.no_grad():
        network.classifier[6].weight.mul_(20)  # logits of some size
    prepare = AlexNet_Weights.IMAGENET1K_V1.transforms()

    def logits(path: Path) -> Array:
        with Image.open(path) as image, torch.inference_mode():
            return network(prepare(image.convert("RGB"))[None])[0].numpy()

    state = network.state_dict()
    parallel = {f"{name.replace('features.', 'features.module.')}": tensor for name, tensor in state.items()}
    args = argparse.Namespace(arch="alexnet", lr=0.01)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9).state_dict()
    checkpoint = {
        "epoch": 90,
        "arch": "alexnet",
        "state_dict": parallel,
        "best_acc1": torch.tensor(56.5),
        "optimizer": optimizer,
    }
    layouts: dict[str, Any] = {
        "plain.pth": state,
        "examples-imagenet.pth.tar": checkpoint | {"args": args, "numpy": np.float64(0.5)},
        "module.pt": {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    }
    for name, content in layouts.items():
        torch.save(content, folder / name)
        yield f"torchvision {name}", folder / name, logits
    safetensors.torch.save_file(state, folder / "plain.safetensors")
    yield "torchvision plain.safetensors", folder / "plain.safetensors", logits
    example = torch.zeros(1, 3, 224, 224)
    torch.onnx.export(network, (example,), folder / "torchvision.onnx", dynamo=True, external_data=False, verbose=False)
    yield "torchvision exported to ONNX", folder / "torchvision.onnx", logits


def caffe_input(path: Path, side: int) -> Array:
    """Prepare a photo as Caffe's training did: stretch to 256x256, crop the centre, BGR, subtract the mean; 1 3 S S."""
    with Image.open(path) as photo:
        image = np.asarray(photo.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC))
    edge = (256 - side) // 2
    crop = image[edge : edge + side, edge : edge + side, ::-1].astype(np.float32) - MEAN
    return crop.transpose(2, 0, 1)[None].copy()


def caffe_files(folder: Path) -> Iterator[tuple[str, Path, Logits]]:
    """Write BVLC AlexNet and CaffeNet for Caffe and ONNX; yield names, files, and the logits of OpenCV or onnxruntime."""
    import cv2
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # no warning for each initializer among the inputs, where old opsets want them
    for network in foreign.ORDERS:
        tensors = foreign.weights(1000)
        (folder / "deploy.prototxt").write_text(foreign.prototxt(network, tensors))
        for version, legacy in ((1, True), (2, False)):
            path = folder / f"{network}-{version}.caffemodel"
            path.write_bytes(foreign.caffemodel(network, tensors, version, legacy))
            theirs = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(path))

            def by_opencv(photo: Path, theirs: Any = theirs) -> Array:
                theirs.setInput(caffe_input(photo, 227))
                return theirs.forward("fc8")[0].copy()

            yield f"{network}, Caffe, version {version}, OpenCV", path, by_opencv
            path.unlink()
        for opset in (7, 12):  # onnxruntime reads no opset before 7
            path = folder / f"{network}-{opset}.onnx"
            path.write_bytes(foreign.zoo(network, tensors, opset))
            model = onnx.load(path)
            model.graph.output[0].name = "fc8_1"
            session = onnxruntime.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])

            def by_onnx(photo: Path, session: Any = session) -> Array:
                return session.run(["fc8_1"], {"data_0": caffe_input(photo, 224)})[0][0]

            yield f"{network}, ONNX opset {opset}, onnxruntime", path, by_onnx
            path.unlink()


def odd_photos() -> Iterator[tuple[str, bytes]]:
    """Yield photos of sizes and kinds that are rare, as files."""
    sizes = [
        (300, 400),
        (374, 500),
        (1000, 2000),
        (3000, 200),
        (8000, 30),
        (256, 256),
        (257, 300),
        (2, 3),
        (1, 700),
        (700, 1),
        (1, 1),
    ]
    for width, height in sizes:
        yield f"{width}x{height}", encoded(picture(2, width, (width, height)), "PNG")
    photo = picture(2, 1, (333, 500))
    yield "grey JPEG", encoded(photo.convert("L"), "JPEG")
    yield "CMYK JPEG", encoded(photo.convert("CMYK"), "JPEG")
    yield "palette", encoded(photo.convert("P"), "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    yield "EXIF-turned (torchvision does not turn it)", encoded(photo, "JPEG", exif=turned)
    yield "transparent (torchvision drops transparency)", encoded(photo.convert("RGBA"), "PNG")


def transforms(run: alexnet.Run, photos: list[Path]) -> list[str]:
    """Compare the inputs that torchvision and the run make of photos; return a line for each that differs."""
    prepare, ours = AlexNet_Weights.IMAGENET1K_V1.transforms(), run.config.preprocessing
    files = [*odd_photos(), *((path.name, path.read_bytes()) for path in photos)]
    found, worst = [], 0.0
    for name, content in files:
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        with torch.inference_mode():
            theirs = prepare(upright)
        stored = torch.from_numpy(stored_pixels(content, **ours.decode_options())[None].copy())
        off = float((to_input(stored, ours)[0] - theirs).abs().max())
        worst = max(worst, off)
        if off > 1e-6:
            found.append(f"{name}: torchvision's transforms and ours differ by {off:.1e}")
    print(f"{'torchvision transforms, ' + str(len(files)) + ' photos':46} largest difference of an input {worst:.1e}")
    return found


def features(run: alexnet.Run, path: Path, photos: list[Path]) -> list[str]:
    """Compare the features of every layer with torchvision's, under its names; return a line for each that is off."""
    network = torchvision.models.alexnet(weights=None).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    prepare, theirs = AlexNet_Weights.IMAGENET1K_V1.transforms(), dict[str, Array]()
    for name in run.network.torchvision_names:

        def keep(module: object, inputs: object, output: torch.Tensor, name: str = name) -> None:
            theirs[name] = output.numpy().copy()  # torchvision's ReLU changes it in place

        network.get_submodule(name).register_forward_hook(keep)
    worst = dict.fromkeys(run.network.torchvision_names, 0.0)
    for photo in photos:
        with Image.open(photo) as image, torch.inference_mode():
            network(prepare(image.convert("RGB"))[None])
        for name, ours in run.features(photo, list(worst)).items():
            worst[name] = max(worst[name], float(np.abs(ours - theirs[name]).max() / np.abs(theirs[name]).max()))
    for name, off in worst.items():
        print(f"torchvision {name:34} {len(photos)} photos, largest difference {off:.1e} of the largest feature", flush=True)
    return [f"{name}: features are off by {off:.1e}" for name, off in worst.items() if not off <= TOLERANCE]


def main(folder: Path) -> list[str]:
    """Return a line for each difference that is too large; print the largest of each file."""
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    photos = photos[:: max(1, len(photos) // COUNT)][:COUNT]
    found: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for number, (name, path, theirs) in enumerate(itertools.chain(torchvision_files(place), caffe_files(place))):
            run = alexnet.load(alexnet.import_weights(path, out=place / f"run{number}"), device="cpu")
            if number == 0:
                found += transforms(run, photos)
                found += features(run, path, photos)
            ours, largest = of_run(run), 0.0
            for photo in photos:
                wanted = theirs(photo)
                largest = max(largest, float(np.abs(ours(photo) - wanted).max() / np.abs(wanted).max()))
            print(f"{name:46} {len(photos)} photos, largest difference {largest:.1e} of the largest logit", flush=True)
            if not largest <= TOLERANCE:
                found.append(f"{name}: logits are off by {largest:.1e}")
            shutil.rmtree(run.path)
    return found


if __name__ == "__main__":
    sys.exit("\n".join(main(Path(sys.argv[1]))) or None)
