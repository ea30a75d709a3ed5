from tests.docker_server.fixtures import (  # noqa: F401
    base_image,
    docker_config,
    docker_engine,
    here,
    open_registry,
    private_registry,
)
