"""ComfyUI itself: installed, started as a child, talked to."""
