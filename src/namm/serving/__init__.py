"""An OpenAI-compatible server whose conversations keep a learned memory."""

from namm.serving.access import Access
from namm.serving.app import create_app
from namm.serving.conversations import Conversations
from namm.serving.engine import Engine
from namm.serving.host import Host, Limits
from namm.serving.metrics import Metrics

__all__ = ["Access", "Conversations", "Engine", "Host", "Limits", "Metrics", "create_app"]
