#include "symbols.h"

#include <elf.h>
#include <features.h>

#include <cstdint>
#include <cstring>
#include <map>

#include "dsgc/runtime.h"

#if !defined(__GLIBC__) || !__GLIBC_PREREQ(2, 28)
#error "symbols with absolute values need the dynamic linker of glibc 2.28 or newer"
#endif

namespace dsgc::detail {
namespace {

[[noreturn]] void refuse() { throw DamagedArtifact("its kernels.so is no shared object"); }

class Image {
 public:
  explicit Image(std::string& bytes) : bytes_(bytes) {
    auto header = at<Elf64_Ehdr>(0);
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
        header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
        header.e_type != ET_DYN || header.e_phentsize != sizeof(Elf64_Phdr)) {
      refuse();
    }
    for (std::uint64_t i = 0; i < header.e_phnum; ++i) {
      segments_.push_back(at<Elf64_Phdr>(sum(header.e_phoff, i * sizeof(Elf64_Phdr))));
    }
    for (const Elf64_Phdr& segment : segments_) {
      if (segment.p_type == PT_DYNAMIC) read_dynamic(segment);
    }
  }

  /// Calls `look` with the place in the file of every symbol that a relocation names.
  template <class Look>
  void each_symbol(Look look) {
    each_symbol_of(DT_RELA, DT_RELASZ, look);
    each_symbol_of(DT_JMPREL, DT_PLTRELSZ, look);
  }

  std::string name_of(const Elf64_Sym& symbol) {
    std::uint64_t begin = sum(offset_of(dynamic(DT_STRTAB)), symbol.st_name);
    std::size_t end = begin < bytes_.size() ? bytes_.find('\0', begin) : std::string::npos;
    if (end == std::string::npos) refuse();
    return bytes_.substr(begin, end - begin);
  }

  template <class T>
  T at(std::uint64_t offset) const {
    T found;
    if (offset > bytes_.size() || sizeof(T) > bytes_.size() - offset) refuse();
    std::memcpy(&found, bytes_.data() + offset, sizeof(T));
    return found;
  }

  void put(std::uint64_t offset, const Elf64_Sym& symbol) {
    at<Elf64_Sym>(offset);
    std::memcpy(bytes_.data() + offset, &symbol, sizeof symbol);
  }

 private:
  static std::uint64_t sum(std::uint64_t a, std::uint64_t b) {
    std::uint64_t found;
    if (__builtin_add_overflow(a, b, &found)) refuse();
    return found;
  }

  void read_dynamic(const Elf64_Phdr& segment) {
    for (std::uint64_t i = 0; i < segment.p_filesz / sizeof(Elf64_Dyn); ++i) {
      auto entry = at<Elf64_Dyn>(sum(segment.p_offset, i * sizeof(Elf64_Dyn)));
      if (entry.d_tag == DT_NULL) return;
      dynamic_[entry.d_tag] = entry.d_un.d_val;
    }
  }

  std::uint64_t dynamic(std::int64_t tag) const {
    auto found = dynamic_.find(tag);
    if (found == dynamic_.end()) refuse();
    return found->second;
  }

  /// Where in the file an address of the loaded library comes from.
  std::uint64_t offset_of(std::uint64_t address) const {
    for (const Elf64_Phdr& segment : segments_) {
      if (segment.p_type == PT_LOAD && address >= segment.p_vaddr &&
          address - segment.p_vaddr < segment.p_filesz) {
        return sum(segment.p_offset, address - segment.p_vaddr);
      }
    }
    refuse();
  }

  template <class Look>
  void each_symbol_of(std::int64_t table, std::int64_t size, Look look) {
    if (dynamic_.count(table) == 0) return;
    std::uint64_t begin = offset_of(dynamic(table));
    std::uint64_t symbols = offset_of(dynamic(DT_SYMTAB));
    for (std::uint64_t i = 0; i < dynamic(size) / sizeof(Elf64_Rela); ++i) {
      auto relocation = at<Elf64_Rela>(sum(begin, i * sizeof(Elf64_Rela)));
      look(sum(symbols, ELF64_R_SYM(relocation.r_info) * sizeof(Elf64_Sym)));
    }
  }

  std::string& bytes_;
  std::vector<Elf64_Phdr> segments_;
  std::map<std::int64_t, std::uint64_t> dynamic_;
};

}  // namespace

void define(std::string& library, const Functions& functions) {
  Image image(library);
  image.each_symbol([&](std::uint64_t place) {
    auto symbol = image.at<Elf64_Sym>(place);
    if (symbol.st_shndx != SHN_UNDEF || symbol.st_name == 0) return;
    std::string name = image.name_of(symbol);
    for (const auto& [known, address] : functions) {
      if (name != known) continue;
      symbol.st_info = ELF64_ST_INFO(STB_LOCAL, STT_FUNC);
      symbol.st_other = STV_HIDDEN;
      symbol.st_shndx = SHN_ABS;
      symbol.st_value = reinterpret_cast<std::uint64_t>(address);
      image.put(place, symbol);
    }
  });
}

}  // namespace dsgc::detail
