"""An S3-compatible server on loopback."""

from __future__ import annotations

import logging
import uuid
from typing import Any
from urllib.request import Request, urlopen

from hpo_ray.location import Location

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_EC2_METADATA_DISABLED": "true"}


class Server:
    """moto's, with one bucket, `studies`. What is in it outlives `stop`."""

    def __init__(self) -> None:
        self._server: Any = None
        self.port = 0
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self.start()
        urlopen(Request(f"http://127.0.0.1:{self.port}/studies", method="PUT")).close()

    def start(self, *_: object) -> None:
        """Starts it, at the port that it had before."""
        from moto.server import ThreadedMotoServer

        if self._server is None:
            self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
            self._server.start()
            self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        """From now on nobody listens there."""
        if self._server is not None:
            self._server.stop()
            self._server._server.server_close()
            self._server = None

    def prefix(self) -> Location:
        """A prefix that nothing is in yet."""
        endpoint = f"endpoint_override=http://127.0.0.1:{self.port}&region=us-east-1"
        return Location.of(f"s3://studies/{uuid.uuid4().hex[:8]}?{endpoint}")
