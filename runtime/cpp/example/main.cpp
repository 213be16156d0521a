// Runs an exported model on arrays:
//   dsgc_run model.dsgc images.npy --out logits.npy --threads 2 --profile
#include <cmath>
#include <cstdio>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "dsgc/runtime.h"
#include "npy.h"

namespace {

const char kUsage[] =
    "usage: dsgc_run MODEL INPUT... [--out FILE]... [--threads N] [--profile]\n"
    "\n"
    "  MODEL      what dsgc.export wrote; it holds native code: run only what you trust\n"
    "  INPUT      one file for every input: .npy, or the bare numbers of whole samples\n"
    "  --out      where to write an output, .npy; as often as there are outputs\n"
    "  --threads  how many to run on; otherwise all\n"
    "  --profile  print what every layer takes\n";

// What the program ends with.
enum Exit { kDone, kFailed, kUsed, kDamaged, kNewer, kMachine, kInput, kKernel };

struct Options {
  std::string model;
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
  std::optional<int> threads;
  bool profile = false;
};

/// Throws std::invalid_argument if the arguments are not those of `kUsage`.
Options parsed(const std::vector<std::string>& arguments) {
  Options made;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& one = arguments[i];
    bool takes_value = one == "--out" || one == "--threads";
    if (takes_value && i + 1 == arguments.size())
      throw std::invalid_argument(one + " needs a value");
    if (one == "--out") {
      made.outputs.push_back(arguments[++i]);
    } else if (one == "--threads") {
      const std::string& count = arguments[++i];
      if (count.empty() || count.size() > 6 ||
          count.find_first_not_of("0123456789") != std::string::npos) {
        throw std::invalid_argument("--threads needs a number, not " + count);
      }
      made.threads = std::stoi(count);
    } else if (one == "--profile") {
      made.profile = true;
    } else if (one.compare(0, 2, "--") == 0) {
      throw std::invalid_argument("there is no option " + one);
    } else if (made.model.empty()) {
      made.model = one;
    } else {
      made.inputs.push_back(one);
    }
  }
  if (made.model.empty()) throw std::invalid_argument("there is no model");
  return made;
}

void print_port(const char* kind, const dsgc::PortInfo& port) {
  std::string shape;
  for (const auto& extent : port.shape) {
    shape += (shape.empty() ? "" : ", ") + (extent ? std::to_string(*extent) : "batch");
  }
  std::printf("%s %s: %s [%s]\n", kind, port.name.c_str(), dsgc::name_of(port.dtype),
              shape.c_str());
}

void print_profile(const std::vector<dsgc::LayerProfile>& layers) {
  std::printf("%-32s %10s %6s %8s %10s\n", "layer", "ms", "share", "sparsity", "MB touched");
  for (const dsgc::LayerProfile& one : layers) {
    std::string sparsity =
        one.sparsity ? std::to_string(std::lround(100 * *one.sparsity)) + "%" : "";
    std::printf("%-32s %10.3f %5.0f%% %8s %10.2f\n", one.name.c_str(), 1e3 * one.seconds,
                100 * one.share, sparsity.c_str(), static_cast<double>(one.bytes) / 1e6);
  }
}

void run(const Options& options) {
  dsgc::Model model(options.model, options.threads);
  if (options.inputs.size() != model.inputs().size()) {
    for (const dsgc::PortInfo& port : model.inputs()) print_port("input", port);
    throw dsgc::InputError("the model takes " + std::to_string(model.inputs().size()) +
                           " inputs, not " + std::to_string(options.inputs.size()));
  }
  if (options.outputs.size() > model.outputs().size()) {
    throw dsgc::InputError("the model gives only " + std::to_string(model.outputs().size()) +
                           " outputs");
  }
  std::vector<dsgc::Tensor> arrays;
  std::vector<dsgc::TensorView> inputs;
  for (std::size_t i = 0; i < options.inputs.size(); ++i) {
    arrays.push_back(read_array(options.inputs[i], model.inputs()[i]));
    inputs.push_back(arrays.back().view());
  }
  std::vector<dsgc::Tensor> results = model.run(inputs);
  for (std::size_t i = 0; i < results.size(); ++i) {
    print_port("output", model.outputs()[i]);
    if (i < options.outputs.size()) write_npy(options.outputs[i], results[i]);
  }
  if (options.profile) print_profile(model.profile(inputs));
}

int report(Exit code, const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return code;
}

}  // namespace

int main(int count, char** words) {
  try {
    run(parsed(std::vector<std::string>(words + 1, words + count)));
    return kDone;
  } catch (const std::invalid_argument& error) {
    std::fputs(kUsage, stderr);
    return report(kUsed, error);
  } catch (const dsgc::DamagedArtifact& error) {
    return report(kDamaged, error);
  } catch (const dsgc::NewerFormat& error) {
    return report(kNewer, error);
  } catch (const dsgc::WrongMachine& error) {
    return report(kMachine, error);
  } catch (const dsgc::InputError& error) {
    return report(kInput, error);
  } catch (const dsgc::KernelError& error) {
    return report(kKernel, error);
  } catch (const std::exception& error) {  // a file, memory, or a library that is missing
    return report(kFailed, error);
  }
}
