"""What people have, read into one list of videos with captions: folders, manifests, lists, the Flintstones, stories."""
