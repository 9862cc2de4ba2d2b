#!/usr/bin/env python3
"""Writes an event file with TensorBoard's own record writer and protocol buffers.

  make_events.py FOLDER      writes FOLDER/events/run.tfevents, as it belongs into tests/golden
"""
import pathlib
import sys

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.summary.writer.record_writer import RecordWriter

TIME = 1764000000.25


def events():
    yield Event(wall_time=TIME, file_version="brain.Event:2")
    yield Event(wall_time=TIME, step=301, session_log=SessionLog(status=SessionLog.START))
    values = [Summary.Value(tag="train/loss", simple_value=4.5678), Summary.Value(tag="train/lr", simple_value=1e-3)]
    yield Event(wall_time=TIME + 1, step=301, summary=Summary(value=values))
    text = TensorProto(dtype=7, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
                       string_val=["Once 桥\n".encode()])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    yield Event(wall_time=TIME + 2, step=302, summary=Summary(value=[Summary.Value(tag="sample", tensor=text, metadata=metadata)]))


def main():
    folder = pathlib.Path(sys.argv[1]) / "events"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "run.tfevents", "wb") as file:
        writer = RecordWriter(file)
        for event in events():
            writer.write(event.SerializeToString())
        writer.flush()


if __name__ == "__main__":
    main()
