// What the tests of dsgc look at that the example does not show. The first argument says what:
//   arena            plans for lists of "bytes first last", one a line, as offsets and total
//   sha256 FILE      the hash of a file, taken in pieces of all sizes
//   symbols          for every path of a line: whether a shared object's symbols were defined
//   load             for every path of a line: "loaded", or the type and text of the error
//   describe MODEL   what the model says of itself
//   refusals MODEL   what it says to inputs that do not fit; it takes [batch, 3, 12, 12]
//   threads MODEL    whether calls of many threads at once give what single calls give
#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "arena.h"
#include "dsgc/runtime.h"
#include "sha256.h"
#include "symbols.h"

namespace {

using Shape = std::vector<std::int64_t>;

/// The type and text of what `act` throws, or `otherwise`.
std::string outcome(const std::function<void()>& act, const std::string& otherwise) {
  try {
    act();
    return otherwise;
  } catch (const dsgc::DamagedArtifact& error) {
    return std::string("DamagedArtifact: ") + error.what();
  } catch (const dsgc::NewerFormat& error) {
    return std::string("NewerFormat: ") + error.what();
  } catch (const dsgc::WrongMachine& error) {
    return std::string("WrongMachine: ") + error.what();
  } catch (const dsgc::LibraryError& error) {
    return std::string("LibraryError: ") + error.what();
  } catch (const dsgc::InputError& error) {
    return std::string("InputError: ") + error.what();
  } catch (const std::invalid_argument& error) {
    return std::string("invalid_argument: ") + error.what();
  } catch (const std::exception& error) {
    return std::string("exception: ") + error.what();
  }
}

void say(std::string words) {
  for (char& c : words) {
    if (c == '\n') c = ' ';
  }
  std::cout << words << std::endl;
}

void arena() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream numbers(line);
    std::vector<dsgc::detail::Needed> needed;
    for (dsgc::detail::Needed one{}; numbers >> one.bytes >> one.first >> one.last;) {
      needed.push_back(one);
    }
    auto [offsets, total] = dsgc::detail::plan(needed);
    for (std::int64_t offset : offsets) std::cout << offset << ' ';
    std::cout << total << '\n';
  }
}

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream held;
  held << file.rdbuf();
  return held.str();
}

void sha256(const std::string& path) {
  std::string content = content_of(path);
  dsgc::detail::Sha256 hash;
  for (std::size_t at = 0, piece = 0; at < content.size(); piece = (piece + 1) % 200) {
    std::size_t taken = std::min(piece, content.size() - at);
    hash.update(content.data() + at, taken);
    at += taken;
  }
  say(hash.hex());
}

void symbols() {
  int place = 0;
  const dsgc::detail::Functions functions = {{"TVMFFIErrorSetRaisedFromCStr", &place},
                                             {"TVMFFIErrorSetRaisedFromCStrParts", &place}};
  for (std::string path; std::getline(std::cin, path);) {
    std::string library = content_of(path), before = library;
    std::string refused = outcome([&] { dsgc::detail::define(library, functions); }, "");
    say(!refused.empty() ? refused : library == before ? "nothing" : "defined");
  }
}

void load() {
  for (std::string path; std::getline(std::cin, path);) {
    say(outcome([&] { dsgc::Model model(path, 1); }, "loaded"));
  }
}

std::string text(const dsgc::PortInfo& port) {
  std::string made = port.name + " " + dsgc::name_of(port.dtype);
  for (const auto& extent : port.shape) made += " " + (extent ? std::to_string(*extent) : "batch");
  return made;
}

void describe(const std::string& path) {
  dsgc::Model first(path, 3);
  dsgc::Model model = std::move(first);
  say(std::to_string(model.threads().value()) + " threads, " +
      std::to_string(model.graph().size()) + " characters of graph");
  for (const dsgc::PortInfo& port : model.inputs()) say("input " + text(port));
  for (const dsgc::PortInfo& port : model.outputs()) say("output " + text(port));
  for (const dsgc::Layer& layer : model.layers()) {
    std::printf("layer %s %d %.6f %lld %s\n", layer.name.c_str(), layer.sparse, layer.sparsity,
                static_cast<long long>(layer.multiply_adds), layer.reason.c_str());
  }
}

/// Numbers that differ from batch to batch, between -1 and 1.
std::vector<float> numbers(std::size_t count, std::uint32_t seed) {
  std::vector<float> made(count);
  for (float& one : made) {
    seed = seed * 1664525 + 1013904223;
    one = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return made;
}

void refusals(const std::string& path) {
  dsgc::Model model(path, 1);
  std::vector<float> data(3 * 3 * 12 * 12 + 1);
  std::vector<std::int32_t> whole(3 * 3 * 12 * 12);
  auto said = [&](const std::vector<dsgc::TensorView>& given) {
    say(outcome([&] { model.run(given); }, "run"));
  };
  auto seen = [&](Shape shape) { return dsgc::TensorView::of(data.data(), std::move(shape)); };
  said({});
  said({seen({2, 3, 12, 11})});
  said({seen({3, 12, 12})});
  said({dsgc::TensorView::of(whole.data(), {2, 3, 12, 12})});
  said({seen({-1, 3, 12, 12})});
  said({seen({std::int64_t{1} << 62, 3, 12, 12})});
  said({{dsgc::DType::float32, {2, 3, 12, 12}, nullptr}});
  say(outcome([&] { model.profile({seen({0, 3, 12, 12})}); }, "profiled"));
  say(outcome([&] { model.set_threads(0); }, "set"));
  say(outcome([&] { dsgc::Model other(path, -1); }, "loaded"));
  say(outcome([&] { dsgc::Tensor(dsgc::DType::int64, {1 << 30, 1 << 30, 1 << 30}); }, "made"));
  say(outcome([&] { model.run({seen({1, 3, 12, 12})})[0].as<std::int32_t>(); }, "seen"));
  // An input need not be aligned.
  std::vector<float> values = numbers(3 * 12 * 12, 1);
  std::vector<char> odd(values.size() * sizeof(float) + 1);
  std::memcpy(odd.data() + 1, values.data(), odd.size() - 1);
  auto wanted = model.run({dsgc::TensorView::of(values.data(), {1, 3, 12, 12})});
  auto found = model.run({{dsgc::DType::float32, {1, 3, 12, 12}, odd.data() + 1}});
  say(std::memcmp(wanted[0].data(), found[0].data(), wanted[0].bytes()) == 0 ? "equal" : "differ");
}

void threads(const std::string& path) {
  dsgc::Model model(path, 1);
  constexpr int kThreads = 8, kCalls = 12, kBatches = 5;
  std::map<int, std::vector<float>> given;
  std::map<int, std::vector<dsgc::Tensor>> wanted;
  auto run = [&](int batch) {
    return model.run({dsgc::TensorView::of(given.at(batch).data(), {batch, 3, 12, 12})});
  };
  for (int batch = 1; batch <= kBatches; ++batch) {
    given[batch] = numbers(static_cast<std::size_t>(batch) * 3 * 12 * 12, batch);
    wanted[batch] = run(batch);
  }
  std::atomic<int> equal{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kThreads; ++caller) {
    callers.emplace_back([&, caller] {
      for (int call = 0; call < kCalls; ++call) {
        int batch = 1 + (caller + call) % kBatches;
        if (caller == 0) model.set_threads(1 + call % 2);  // results do not depend on it
        auto found = run(batch);
        const dsgc::Tensor& other = wanted.at(batch)[0];
        equal += found[0].shape() == other.shape() &&
                 std::memcmp(found[0].data(), other.data(), other.bytes()) == 0;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  say(std::to_string(equal) + " of " + std::to_string(kThreads * kCalls));
}

}  // namespace

int main(int count, char** words) {
  const std::string what = count > 1 ? words[1] : "", path = count > 2 ? words[2] : "";
  const std::map<std::string, std::function<void()>> known = {{"arena", arena},
                                                              {"symbols", symbols},
                                                              {"load", load},
                                                              {"sha256", [&] { sha256(path); }},
                                                              {"describe", [&] { describe(path); }},
                                                              {"refusals", [&] { refusals(path); }},
                                                              {"threads", [&] { threads(path); }}};
  auto act = known.find(what);
  if (act == known.end()) return std::fprintf(stderr, "there is no check %s\n", what.c_str()), 2;
  std::string said = outcome(act->second, "");
  if (!said.empty()) std::fprintf(stderr, "%s\n", said.c_str());
  return said.empty() ? 0 : 1;
}
