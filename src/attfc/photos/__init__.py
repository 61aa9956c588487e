"""From photos to aligned faces: a detector with five landmarks, the warp to the ArcFace template, folders of photos."""
