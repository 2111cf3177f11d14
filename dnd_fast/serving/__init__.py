"""Serving: prompts in, an adapter live in a running language model server.

One core (:mod:`dnd_fast.serving.publisher` and :mod:`dnd_fast.serving.service`), and thin layers on
it: the gateway, its page, and the plugin for vLLM. Needs the extra ``dnd-fast[serve]``.
"""
