// TensorBoard's event files: records of TFRecord, each an Event of its protocol buffers
// (https://github.com/tensorflow/tensorboard, tensorboard/compat/proto/event.proto).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace qiao::train {

using Scalar = std::pair<std::string_view, double>;  // tag, value (kept as F32)

// Serialized Events. `wall_time`: seconds since 1970.
std::string version_event(double wall_time);  // the first of a file
// A process begins at `step`: what an earlier one wrote from that step on is void.
std::string start_event(double wall_time, int64_t step);
std::string scalars_event(double wall_time, int64_t step, std::span<const Scalar> scalars);
std::string text_event(double wall_time, int64_t step, std::string_view tag, std::string_view text);

// `data` as a record: its length and itself, each with a masked CRC-32C behind it.
std::string tf_record(std::string_view data);

// A file's name that TensorBoard knows: "events.out.tfevents.SECONDS.HOST.PROCESS.0".
std::string event_file_name(double wall_time);

}  // namespace qiao::train
