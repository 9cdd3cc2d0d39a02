"""What the workloads share: where things are in the database, and opening it."""
from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.utils import ShortRead

# What a client sees when its server goes away. A refused connection is an AssertionError in ClientStorage.
LOST = (ShortRead, OSError)
HOST = '127.0.0.1'


def connect(port):
    """A connection to the server at this port; an OSError if nobody is there."""
    try:
        storage = ClientStorage(host=HOST, port=port)
    except AssertionError as error:
        raise OSError(str(error))
    return Connection(storage)


def close(connection):
    try:
        connection.get_storage().close()
    except OSError:
        pass  # It is gone already.


def add_source_options(parser):
    parser.add_argument('--port', type=int, help='read through the server at this port')
    parser.add_argument('--file', help='read this file with stock FileStorage, read-only')


def open_source(options):
    """A stock storage, from what add_source_options offers."""
    assert (options.port is None) != (options.file is None), 'either --port or --file'
    if options.file is not None:
        return FileStorage(options.file, readonly=True)
    return ClientStorage(host=HOST, port=options.port)
