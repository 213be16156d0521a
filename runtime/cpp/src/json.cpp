#include "json.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "dsgc/runtime.h"

namespace dsgc::json {
namespace {

constexpr std::size_t kDepth = 64;

/// Puts values where they belong while nlohmann's parser reads them. Containers that are open do
/// not move: what holds them grows only when they are closed.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Value root;
  std::string refusal;

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max())) {
      return add(static_cast<double>(value));
    }
    return add(static_cast<std::int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return refuse("binary data"); }
  bool start_object(std::size_t) override { return open(Object()); }
  bool start_array(std::size_t) override { return open(Array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    key_ = std::move(name);
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& e) override {
    return refuse(e.what());
  }

 private:
  bool refuse(std::string why) {
    refusal = std::move(why);
    return false;
  }

  template <class Content>
  bool add(Content content) {
    fresh().content = std::move(content);
    return true;
  }

  template <class Content>
  bool open(Content content) {
    if (open_.size() >= kDepth) return refuse("it is nested too deeply");
    Value& made = fresh();
    made.content = std::move(content);
    open_.push_back(&made);
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  /// A null where the next value belongs.
  Value& fresh() {
    if (open_.empty()) return root;
    if (auto* array = std::get_if<Array>(&open_.back()->content)) return array->emplace_back();
    auto& object = std::get<Object>(open_.back()->content);
    object.push_back(Member{std::move(key_), {}});
    return object.back().value;
  }

  std::vector<Value*> open_;
  std::string key_;
};

class Writer {
 public:
  explicit Writer(std::size_t most) : most_(most) {}

  std::string made;

  void write(const Value& value) {
    if (made.size() >= most_) return;
    if (const auto* array = std::get_if<Array>(&value.content)) {
      list('[', *array, ']', [this](const Value& one) { write(one); });
    } else if (const auto* object = std::get_if<Object>(&value.content)) {
      list('{', *object, '}', [this](const Member& one) {
        quote(one.name);
        made += ": ";
        write(one.value);
      });
    } else if (const auto* words = std::get_if<std::string>(&value.content)) {
      quote(*words);
    } else if (const auto* whole = std::get_if<std::int64_t>(&value.content)) {
      made += std::to_string(*whole);
    } else if (const auto* number = std::get_if<double>(&value.content)) {
      made += std::to_string(*number);
    } else if (const auto* truth = std::get_if<bool>(&value.content)) {
      made += *truth ? "true" : "false";
    } else {
      made += "null";
    }
  }

 private:
  template <class Items, class Write>
  void list(char begin, const Items& items, char end, Write write_one) {
    made += begin;
    for (std::size_t i = 0; i < items.size() && made.size() < most_; ++i) {
      if (i > 0) made += ", ";
      write_one(items[i]);
    }
    made += end;
  }

  void quote(const std::string& words) { made += '"' + plain(words.substr(0, most_)) + '"'; }

  std::size_t most_;
};

}  // namespace

Value parse(std::string_view text, const std::string& what) {
  Builder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    throw DamagedArtifact(what + " cannot be read: " + plain(builder.refusal.substr(0, 200)));
  }
  return std::move(builder.root);
}

const Value* find(const Value* object, std::string_view name) {
  const auto* members = object == nullptr ? nullptr : std::get_if<Object>(&object->content);
  if (members == nullptr) return nullptr;
  for (auto member = members->rbegin(); member != members->rend(); ++member) {
    if (member->name == name) return &member->value;
  }
  return nullptr;
}

std::string plain(std::string words) {
  for (char& c : words) {
    if (c < ' ' || c > '~') c = '?';
  }
  return words;
}

std::string text(const Value& value, std::size_t most) {
  Writer writer(most);
  writer.write(value);
  return writer.made.substr(0, most);
}

}  // namespace dsgc::json
