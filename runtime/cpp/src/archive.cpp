#include "archive.h"

#include "check.h"
#include "container.h"
#include "machine.h"
#include "sha256.h"

namespace dsgc::detail {
namespace {

constexpr std::uint64_t kMostManifest = 16 << 20;

std::string hash_of(const std::string& data) {
  Sha256 hash;
  hash.update(data.data(), data.size());
  return hash.hex();
}

Manifest manifest_of(const Input& file, const Container& container) {
  Place place = container.members.at("manifest.json");
  if (place.bytes > kMostManifest) {
    throw DamagedArtifact("manifest.json is larger than " + std::to_string(kMostManifest) +
                          " bytes");
  }
  std::string text = file.text(place.offset, place.bytes);
  if (hash_of(text) != container.comment) throw DamagedArtifact("its manifest has been altered");
  return read_manifest(text);
}

void check_size(const Manifest& manifest, const std::string& name, Place place) {
  auto about = manifest.files.find(name);
  if (about == manifest.files.end() ||
      static_cast<std::uint64_t>(about->second.bytes) != place.bytes) {
    throw DamagedArtifact(name + " has been altered");
  }
}

std::string part(const Input& file, const Container& container, const std::string& name,
                 const Manifest& manifest) {
  Place place = container.members.at(name);
  check_size(manifest, name, place);
  std::string data = file.text(place.offset, place.bytes);
  if (hash_of(data) != manifest.files.at(name).sha256) {
    throw DamagedArtifact(name + " has been altered");
  }
  return data;
}

Archive checked(const Input& file) {
  Container container = read_container(file);
  Archive made{manifest_of(file, container), {}, {}, {}};
  check_machine(made.manifest);
  made.graph = part(file, container, "graph.txt", made.manifest);
  made.kernels = part(file, container, "kernels.so", made.manifest);
  Place place = container.members.at("weights.safetensors");
  check_size(made.manifest, "weights.safetensors", place);
  made.weights = read_weights(file, place, made.manifest);
  check_program(made.manifest, made.weights);
  return made;
}

}  // namespace

Archive open_archive(const std::string& path) {
  Input file(path);
  try {
    return checked(file);
  } catch (const NewerFormat& error) {
    throw NewerFormat(path + ": " + error.what());
  } catch (const WrongMachine& error) {
    throw WrongMachine(path + ": " + error.what());
  } catch (const DamagedArtifact& error) {
    throw DamagedArtifact(path + ": " + error.what());
  }
}

}  // namespace dsgc::detail
