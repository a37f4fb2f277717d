"""What people have, read into one list of videos with captions: folders of videos and of frames, manifests, lists."""
