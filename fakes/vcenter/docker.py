# SPDX-License-Identifier: MIT
"""vcsim in a container."""

from __future__ import annotations


def engine_has_image(image: str) -> bool:
    """Whether a Docker engine answers and has that image."""
    import docker
    import docker.errors

    try:
        client = docker.from_env(timeout=5)
    except docker.errors.DockerException:
        return False
    try:
        client.images.get(image)
    except (docker.errors.DockerException, OSError):
        return False
    finally:
        client.close()
    return True
