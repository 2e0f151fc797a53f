"""On SIGUSR1 every WebSocket of this ComfyUI breaks, in whatever a node is at."""

import signal
import socket

from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}


def cut() -> None:
    """End the connections as a network does: without a word to either side."""
    for websocket in PromptServer.instance.sockets.values():
        websocket.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


PromptServer.instance.loop.add_signal_handler(signal.SIGUSR1, cut)
