#include "manifest.h"

#include <charconv>
#include <cmath>
#include <utility>

#include "json.h"

namespace dsgc::detail {
namespace {

constexpr std::int64_t kFormat = 1;
constexpr std::size_t kMost = 1'000'000;       // instructions, layers
constexpr std::size_t kMostBuffers = 1 << 14;  // laying them out takes longer than their number
constexpr std::size_t kMostDigits = 64;        // of a number that is written as a text

template <class T>
constexpr const char* kind_of() {
  if constexpr (std::is_same_v<T, json::Object>) return "dict";
  if constexpr (std::is_same_v<T, json::Array>) return "list";
  if constexpr (std::is_same_v<T, std::string>) return "str";
  if constexpr (std::is_same_v<T, std::int64_t>) return "int";
  if constexpr (std::is_same_v<T, double>) return "float";
  return "bool";
}

template <class T>
const T& get(const json::Value* owner, const char* name) {
  const json::Value* found = json::find(owner, name);
  const T* value = found == nullptr ? nullptr : std::get_if<T>(&found->content);
  if (value == nullptr) {
    throw DamagedArtifact("the manifest has no '" + std::string(name) + "' that is a " +
                          kind_of<T>());
  }
  return *value;
}

std::int64_t count(const json::Value* owner, const char* name) {
  std::int64_t found = get<std::int64_t>(owner, name);
  if (found < 0 || found >= kLimit) {
    throw DamagedArtifact(std::string(name) + " cannot be " + std::to_string(found));
  }
  return found;
}

std::vector<std::string> texts(const json::Value* owner, const char* name) {
  std::vector<std::string> found;
  for (const json::Value& one : get<json::Array>(owner, name)) {
    const auto* words = std::get_if<std::string>(&one.content);
    if (words == nullptr) throw DamagedArtifact(std::string(name) + " must be a list of names");
    found.push_back(*words);
  }
  return found;
}

std::optional<DType> dtype_named(std::string_view name) {
  for (DType dtype : {DType::float32, DType::int32, DType::int64, DType::uint8, DType::int8}) {
    if (name == name_of(dtype)) return dtype;
  }
  return std::nullopt;
}

double number(const std::string& words) {
  double found = 0;
  const char* end = words.data() + words.size();
  auto [stopped, error] = std::from_chars(words.data(), end, found);
  if (error == std::errc::result_out_of_range) {  // as everywhere else: infinite, or zero
    found = words.find_last_of("eE") + 1 == words.find_last_of('-') ? 0.0 : HUGE_VAL;
    found = words[0] == '-' ? -found : found;
    error = std::errc();
  }
  if (words.size() > kMostDigits || error != std::errc() || stopped != end || std::isnan(found)) {
    throw DamagedArtifact("an argument is not a number");
  }
  return found;
}

class Reader {
 public:
  explicit Reader(const json::Value& content) : content_(&content) {}

  Manifest manifest() {
    const json::Value* target = json::find(content_, "target");
    const json::Value* batch = json::find(content_, "batch");
    get<json::Object>(content_, "target");
    get<json::Object>(content_, "batch");
    for (const json::Value& one : get<json::Array>(content_, "program")) declare(one);
    buffers_ = get<json::Array>(content_, "buffers").size();
    get<std::string>(content_, "dsgc");
    made_.target = get<std::string>(target, "name");
    made_.machine = get<std::string>(target, "machine");
    made_.features = texts(target, "features");
    made_.dynamic = get<bool>(batch, "dynamic");
    made_.example = count(batch, "example");
    made_.inputs = many("inputs", &Reader::port);
    made_.outputs = many("outputs", &Reader::port);
    made_.buffers = many("buffers", &Reader::buffer, kMostBuffers);
    made_.program = many("program", &Reader::step);
    made_.layers = many("layers", &Reader::layer);
    for (const json::Member& file : get<json::Object>(content_, "files")) {
      made_.files[file.name] = {get<std::string>(&file.value, "sha256"),
                                count(&file.value, "bytes")};
    }
    check_lifetimes();
    return std::move(made_);
  }

 private:
  /// Sizes may have names that the program reads.
  void declare(const json::Value& step) {
    const json::Value* read = json::find(&step, "read");
    const auto* name = read == nullptr ? nullptr : std::get_if<std::string>(&read->content);
    if (name == nullptr) return;
    // Sizes of buffers and the check of views would speak of another batch than the call.
    if (*name == "batch") throw DamagedArtifact("the program reads the batch");
    std::size_t before = made_.sizes.names();
    if (made_.sizes.name(*name) < before) {
      throw DamagedArtifact("'" + json::plain(*name).substr(0, 40) + "' is read twice");
    }
  }

  template <class T>
  std::vector<T> many(const char* name, T (Reader::*make)(const json::Value&),
                      std::size_t most = kMost) {
    const auto& found = get<json::Array>(content_, name);
    if (found.size() > most) {
      throw DamagedArtifact(std::to_string(found.size()) + " " + name + " are too many");
    }
    std::vector<T> made;
    made.reserve(found.size());
    for (const json::Value& one : found) made.push_back((this->*make)(one));
    return made;
  }

  View view(const json::Value& given) {
    if (!std::holds_alternative<json::Object>(given.content)) {
      throw DamagedArtifact("an argument is not a tensor");
    }
    const json::Value* storage = json::find(&given, "buffer");
    if (storage == nullptr) storage = json::find(&given, "constant");
    std::optional<DType> dtype = dtype_named(get<std::string>(&given, "dtype"));
    const auto& shape = get<json::Array>(&given, "shape");
    View made;
    if (!place(storage, made) || !dtype || shape.size() > kMostDimensions) {
      throw DamagedArtifact(json::text(given, 120) + " is no tensor of the program");
    }
    made.dtype = *dtype;
    for (const json::Value& extent : shape) made.shape.push_back(made_.sizes.parse(&extent, false));
    return made;
  }

  /// Sets where a view lies: a name is a constant, a number a buffer.
  bool place(const json::Value* storage, View& view) {
    if (storage == nullptr) return false;
    if (const auto* name = std::get_if<std::string>(&storage->content)) {
      auto next = static_cast<std::uint32_t>(made_.constants.size());
      auto [known, is_new] = constants_.emplace(*name, next);
      if (is_new) made_.constants.push_back(*name);
      view.is_constant = true;
      view.storage = known->second;
      return true;
    }
    const auto* number = std::get_if<std::int64_t>(&storage->content);
    if (number == nullptr || *number < 0 || static_cast<std::size_t>(*number) >= buffers_) {
      return false;
    }
    view.is_constant = false;
    view.storage = static_cast<std::uint32_t>(*number);
    return true;
  }

  Port port(const json::Value& given) {
    View made = view(given);
    if (made.shape.empty() || !made_.sizes.is_batch(made.shape[0]) || made.is_constant) {
      throw DamagedArtifact("an input or output has no batch dimension");
    }
    for (std::size_t i = 1; i < made.shape.size(); ++i) {
      if (!made_.sizes.is_number(made.shape[i])) {
        throw DamagedArtifact("an input or output has a shape that is not fixed");
      }
    }
    return {get<std::string>(&given, "name"), std::move(made)};
  }

  Buffer buffer(const json::Value& given) {
    std::int64_t first = count(&given, "first"), last = count(&given, "last");
    auto end = static_cast<std::int64_t>(get<json::Array>(content_, "program").size());
    if (first > last || last > end) {
      throw DamagedArtifact("a buffer ends before it begins, or after the program");
    }
    return {made_.sizes.parse(json::find(&given, "bytes"), true), first, last};
  }

  Step step(const json::Value& given) {
    const auto& layer = get<std::string>(&given, "layer");
    const auto& arguments = get<json::Array>(&given, "arguments");
    if (json::find(&given, "read") != nullptr) return read(given, layer, arguments);
    Call made{get<std::string>(&given, "kernel"), layer, {}};
    for (const json::Value& one : arguments) made.arguments.push_back(argument(one));
    return made;
  }

  Read read(const json::Value& given, const std::string& layer, const json::Array& arguments) {
    if (arguments.size() != 1) throw DamagedArtifact("a size is read from one vector");
    View vector = view(arguments[0]);
    if (vector.dtype != DType::int32 || vector.shape.size() != 1) {
      throw DamagedArtifact("a size is read from a vector of int32");
    }
    Size most = made_.sizes.parse(json::find(&given, "most"), true);
    std::uint32_t name = made_.sizes.name(get<std::string>(&given, "read"));
    return {name, layer, std::move(vector), most};
  }

  Argument argument(const json::Value& given) {
    if (const json::Value* whole = json::find(&given, "int")) {
      return made_.sizes.parse(whole, false);
    }
    if (json::find(&given, "float") != nullptr) return number(get<std::string>(&given, "float"));
    return view(given);
  }

  Layer layer(const json::Value& given) {
    double sparsity = get<double>(&given, "sparsity");
    if (!(sparsity >= 0 && sparsity <= 1)) {
      throw DamagedArtifact("a layer's sparsity cannot be " + std::to_string(sparsity));
    }
    return {get<std::string>(&given, "name"), get<bool>(&given, "sparse"),
            get<std::string>(&given, "reason"), sparsity, count(&given, "multiply_adds")};
  }

  /// Refuses instructions that touch a buffer when its memory may be another's.
  void check_lifetimes() const {
    for (std::size_t i = 0; i < made_.program.size(); ++i) {
      auto number = static_cast<std::int64_t>(i);
      each_view(made_.program[i], [&](const View& view) {
        if (view.is_constant) return;
        const Buffer& buffer = made_.buffers[view.storage];
        if (buffer.first <= number && number <= buffer.last) return;
        throw DamagedArtifact("instruction " + std::to_string(number) + " touches buffer " +
                              std::to_string(view.storage) + ", which lives from " +
                              std::to_string(buffer.first) + " to " + std::to_string(buffer.last));
      });
    }
  }

  const json::Value* content_;
  std::size_t buffers_ = 0;
  std::unordered_map<std::string, std::uint32_t> constants_;
  Manifest made_;
};

}  // namespace

Manifest read_manifest(std::string_view text) {
  json::Value content = json::parse(text, "its manifest");
  const json::Value* format = json::find(&content, "format");
  const auto* number = format == nullptr ? nullptr : std::get_if<std::int64_t>(&format->content);
  if (number == nullptr) throw DamagedArtifact("the manifest is not one of dsgc");
  if (*number != kFormat) {
    throw NewerFormat(
        "the artifact has format " + std::to_string(*number) + ", and this runtime reads " +
        std::to_string(kFormat) +
        ": install the version of dsgc-runtime that goes with the dsgc that wrote it");
  }
  return Reader(content).manifest();
}

const std::string& layer_of(const Step& step) {
  return std::visit([](const auto& one) -> const std::string& { return one.layer; }, step);
}

}  // namespace dsgc::detail
