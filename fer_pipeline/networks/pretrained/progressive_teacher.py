"""Read the expression network of the authors of Progressive Teacher, a MobileFaceNet in an ONNX file.

Source: Jiang & Deng (arXiv:2205.14361), who published it in OpenCV's collection of models under Apache-2.0; 112 px RGB
from -1 to 1. It was trained on RAF-DB with a pool of AffectNet, whose terms are for research. Users bring the file; its
outputs were not compared with another program's here, so that `weights check` looks at bytes and shapes alone.
"""

from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.pretrained import Contents, File, Pretrained, Source, read_files
from fer_pipeline.networks.pretrained._onnx import OnnxNet

WEIGHTS = File(
    "facial_expression_recognition_mobilefacenet_2022july.onnx",
    4_791_892,
    "4f61307602fc089ce20488a31d4e4614e3c9753a7d6c41578c854858b183e1a9",
)
CLASSES = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")


def load(contents: Contents) -> OnnxNet:
    """Opens the file with ONNX Runtime."""
    return OnnxNet(lambda: contents[WEIGHTS.name], file=WEIGHTS.name, num_classes=len(CLASSES)).open()


def build() -> OnnxNet:
    """Returns the network that reads its file, where it was installed, when it is first used."""
    return OnnxNet(lambda: read_files("progressive_teacher")[WEIGHTS.name], file=WEIGHTS.name, num_classes=len(CLASSES))


PRETRAINED = Pretrained(
    network="MobileFaceNet",
    source=Source("file", "OpenCV's model zoo, facial expression recognition of July 2022"),
    files=(WEIGHTS,),
    licence="Apache-2.0",
    data_licence="RAF-DB's, for research",
    trained_on="RAF-DB, with unlabelled faces",
    seen=("rafdb", "raf-db basic"),
    knows_all_seen=False,
    preprocessing=Preprocessing(size=112),
    load=load,
    build=build,
    reference=(),
    classes=CLASSES,
    extra="onnx",
    reader="onnxruntime",
)
