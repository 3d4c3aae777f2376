"""Many questions at once to an OpenAI-compatible server, none of which may raise or hang."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from threading import Thread
from typing import Any

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError

from ._http import final
from ._judging import Unreadable


class Server:
    """At most `concurrency` requests are under way, each for at most `timeout_s` seconds.

    One that fails is made again up to `retries` times, after `backoff_s` seconds, then twice as
    many, and so on. It may be used from several threads.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        concurrency: int,
        timeout_s: float,
        retries: int,
        backoff_s: float,
    ) -> None:
        self.timeout_s, self.retries, self.backoff_s = timeout_s, retries, backoff_s
        # without any key the client would send the user's token of the Hugging Face Hub
        self.client = AsyncInferenceClient(
            base_url=base_url, api_key=key or "none", timeout=timeout_s
        )
        self.slots = asyncio.Semaphore(concurrency)
        # one loop for all threads: one bound on the requests, one pool of connections
        self.loop = asyncio.new_event_loop()
        Thread(target=self.loop.run_forever, name="server", daemon=True).start()
        self._wait(self._leave_offline_mode())

    def ask(
        self, chats: Sequence[Any], read: Callable[[Any], float], **options: Any
    ) -> list[float | Exception]:
        """What `read` makes of each chat's answer (a choice of the server's), or why there is none.

        An answer of which it raises Unreadable is not asked for again: the same would come.
        """

        async def everything() -> list[float | Exception]:
            return await asyncio.gather(*(self._answer(chat, read, options) for chat in chats))

        return self._wait(everything())

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def _leave_offline_mode(self) -> None:
        """HF_HUB_OFFLINE is about the Hub, but under it the Hub's client refuses every server."""
        session = await self.client._get_async_client()
        session.event_hooks = {**session.event_hooks, "request": []}

    async def _answer(
        self, chat: Any, read: Callable[[Any], float], options: Any
    ) -> float | Exception:
        error: Exception = Unreadable("never asked")
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(self.backoff_s * 2 ** (attempt - 1))
            try:
                async with self.slots:
                    sent: Awaitable[Any] = self.client.chat_completion(chat, **options)
                    answer = await asyncio.wait_for(sent, self.timeout_s)
                return read(answer.choices[0])
            except Unreadable as unreadable:
                return unreadable
            except Exception as other:  # a server may do anything, and its client raise anything
                error = other
            if isinstance(error, HfHubHTTPError) and final(error.response.status_code):
                break
        return error
