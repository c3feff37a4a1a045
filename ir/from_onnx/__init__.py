"""The ONNX reader: an interpreter of small torch functions, traced by ``torch.export``."""
