"""Any picture to upright crops of one template: decoding, MTCNN, choice of the face, five-point similarity warp."""
