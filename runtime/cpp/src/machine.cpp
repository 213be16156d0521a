#include "machine.h"

#include <sys/utsname.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace dsgc::detail {
namespace {

#if defined(__aarch64__)

/// What this processor can do, named as the kernel names it in /proc/cpuinfo. It is asked for
/// directly: under emulation that file is the host's.
std::set<std::string> features() {
  static const char* const names[] = {
      "fp",      "asimd", "evtstrm", "aes",   "pmull",    "sha1",   "sha2", "crc32",
      "atomics", "fphp",  "asimdhp", "cpuid", "asimdrdm", "jscvt",  "fcma", "lrcpc",
      "dcpop",   "sha3",  "sm3",     "sm4",   "asimddp",  "sha512", "sve",  "asimdfhm",
      "dit",     "uscat", "ilrcpc",  "flagm", "ssbs",     "sb",     "paca", "pacg"};
  unsigned long present = getauxval(AT_HWCAP);
  std::set<std::string> found;
  for (int bit = 0; bit < 32; ++bit) {
    if ((present >> bit & 1) != 0) found.insert(names[bit]);
  }
  return found;
}

#else

/// What this processor can do, named as in /proc/cpuinfo without underscores; empty if that is not
/// known.
std::set<std::string> features() {
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> found;
  for (std::string line; found.empty() && std::getline(file, line);) {
    std::size_t colon = std::min(line.find(':'), line.size());
    std::string name = line.substr(0, colon);
    name.erase(name.find_last_not_of(" \t") + 1);
    if (name != "flags" && name != "Features") continue;
    line.erase(std::remove(line.begin(), line.end(), '_'), line.end());
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) found.insert(word);
  }
  return found;
}

#endif

}  // namespace

void check_machine(const Manifest& manifest) {
  utsname here{};
  if (uname(&here) != 0 || manifest.machine != here.machine) {
    throw WrongMachine("it is for " + manifest.machine + ", and this is " + here.machine +
                       ": export with another target");
  }
  std::set<std::string> present = features();
  std::string missing;
  for (const std::string& name : manifest.features) {
    if (present.empty() || present.count(name) > 0) continue;
    missing += (missing.empty() ? "" : ", ") + name;
  }
  if (!missing.empty()) {
    throw WrongMachine("it was compiled for '" + manifest.target + "' and needs " + missing +
                       ", which this processor does not have: export with another target, such as "
                       "'avx2'");
  }
}

}  // namespace dsgc::detail
