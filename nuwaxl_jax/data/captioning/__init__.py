"""Captions for frames at a stride of every video, by a plug-in; filtered, overruled by hand, restartable."""
