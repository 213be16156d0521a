#include "npy.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string_view>
#include <system_error>
#include <vector>

namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);

struct Name {
  dsgc::DType dtype;
  const char* text;
};
constexpr Name kNames[] = {{dsgc::DType::float32, "<f4"},
                           {dsgc::DType::int32, "<i4"},
                           {dsgc::DType::int64, "<i8"},
                           {dsgc::DType::uint8, "|u1"},
                           {dsgc::DType::int8, "|i1"}};

[[noreturn]] void fail(const std::string& path) {
  throw std::system_error(errno, std::generic_category(), path);
}

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path);
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) fail(path);
  return content;
}

/// What a header says about a key, between `begin` and `end`.
std::string said(const std::string& header, const std::string& key, char begin, char end,
                 const std::string& path) {
  std::size_t at = header.find("'" + key + "':");
  std::size_t from = at == std::string::npos ? at : header.find(begin, at + key.size() + 3);
  std::size_t to = from == std::string::npos ? from : header.find(end, from + 1);
  if (to == std::string::npos) throw dsgc::InputError(path + " is not an .npy file of numbers");
  return header.substr(from + 1, to - from - 1);
}

dsgc::Tensor filled(dsgc::DType dtype, std::vector<std::int64_t> shape, std::string_view data,
                    const std::string& path) {
  dsgc::Tensor made(dtype, std::move(shape));
  if (made.bytes() != data.size()) {
    throw dsgc::InputError(path + " holds " + std::to_string(data.size()) +
                           " bytes of numbers, not " + std::to_string(made.bytes()));
  }
  if (!data.empty()) std::memcpy(made.data(), data.data(), data.size());
  return made;
}

dsgc::Tensor read_npy(const std::string& content, const std::string& path) {
  std::size_t version = content.size() > 6 ? static_cast<unsigned char>(content[6]) : 0;
  std::size_t digits = version == 1 ? 2 : 4, begin = 8 + digits, length = 0;
  for (std::size_t i = 0; i < digits && begin <= content.size(); ++i) {
    length |= std::size_t{static_cast<unsigned char>(content[8 + i])} << (8 * i);
  }
  if (version < 1 || version > 3 || begin > content.size() || length > content.size() - begin) {
    throw dsgc::InputError(path + " is not an .npy file of numbers");
  }
  std::string header = content.substr(begin, std::min<std::size_t>(length, 4096));
  std::string type = said(header, "descr", '\'', '\'', path);
  if (said(header, "fortran_order", ' ', ',', path) != "False") {
    throw dsgc::InputError(path + " is in Fortran's order: write numpy.ascontiguousarray of it");
  }
  std::string extents = said(header, "shape", '(', ')', path);
  std::vector<std::int64_t> shape;
  for (std::size_t at = 0; (at = extents.find_first_of("0123456789", at)) != std::string::npos;) {
    std::size_t end = std::min(extents.find_first_of(", ", at), extents.size());
    if (end - at > 15) throw dsgc::InputError(path + " says that it is too large");
    shape.push_back(std::stoll(extents.substr(at, end - at)));
    at = end;
  }
  for (const Name& name : kNames) {
    if (type == name.text) {
      return filled(name.dtype, shape, std::string_view(content).substr(begin + length), path);
    }
  }
  throw dsgc::InputError(path + " holds " + type + ", which no model takes");
}

}  // namespace

dsgc::Tensor read_array(const std::string& path, const dsgc::PortInfo& wanted) {
  std::string content = content_of(path);
  if (content.compare(0, kMagic.size(), kMagic) == 0) return read_npy(content, path);
  std::vector<std::int64_t> shape;
  for (const auto& extent : wanted.shape) shape.push_back(extent.value_or(1));
  std::size_t sample = dsgc::Tensor(wanted.dtype, shape).bytes();
  if (sample == 0 || content.size() % sample != 0) {
    throw dsgc::InputError(path + " is no .npy file, and its " + std::to_string(content.size()) +
                           " bytes are not whole samples of " + std::to_string(sample));
  }
  shape[0] = static_cast<std::int64_t>(content.size() / sample);
  return filled(wanted.dtype, shape, content, path);
}

void write_npy(const std::string& path, const dsgc::Tensor& array) {
  std::string header = "{'descr': '";
  for (const Name& name : kNames) header += name.dtype == array.dtype() ? name.text : "";
  header += "', 'fortran_order': False, 'shape': (";
  for (std::int64_t extent : array.shape()) header += std::to_string(extent) + ", ";
  header += "), }";
  header.append(63 - (10 + header.size()) % 64, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  file << kMagic << '\1' << '\0' << static_cast<char>(header.size() & 255)
       << static_cast<char>(header.size() >> 8) << header;
  file.write(static_cast<const char*>(array.data()), static_cast<std::streamsize>(array.bytes()));
  file.close();
  if (!file) fail(path);
}
