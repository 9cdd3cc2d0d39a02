"""Packs a file with stock Durus's own packer. Prints the packed size as one line of JSON."""
import argparse
import json
import os

from durus.file_storage import FileStorage


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file')
    options = parser.parse_args()
    storage = FileStorage(options.file)
    storage.pack()
    storage.close()
    print(json.dumps({'bytes': os.path.getsize(options.file)}))


if __name__ == '__main__':
    main()
