// JSON as a tree. All that is used of nlohmann-json stays in json.cpp, which alone compiles it.
#ifndef DSGC_JSON_H_
#define DSGC_JSON_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace dsgc::json {

struct Value;
struct Member;
using Array = std::vector<Value>;
using Object = std::vector<Member>;

/// Whole numbers beyond 64 bits are doubles.
struct Value {
  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> content;
};

struct Member {
  std::string name;
  Value value;
};

/// The value of a JSON text.
///
/// Throws DamagedArtifact, which begins with `what`, if it is none or nested deeper than 64 levels.
Value parse(std::string_view text, const std::string& what);

/// The last member of that name (an object may have several); null if there is none, or no object.
const Value* find(const Value* object, std::string_view name);

/// About the first `most` characters of the value as JSON, for messages.
std::string text(const Value& value, std::size_t most);

/// `words` with a question mark for everything but printable ASCII.
std::string plain(std::string words);

}  // namespace dsgc::json

#endif  // DSGC_JSON_H_
