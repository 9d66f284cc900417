"""Import and convert weights from other programs: Keras, torchvision, Caffe and ONNX."""
