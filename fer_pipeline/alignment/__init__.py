"""Turn any picture into an upright crop of a face: decode, detect by MTCNN, choose the face, warp by five points."""
