#ifndef _WIN32
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "platform/platform.h"

namespace dultra {
namespace platform {

void* allocate_aligned(size_t bytes, size_t alignment) {
  void* pointer = nullptr;
  return posix_memalign(&pointer, alignment, bytes) == 0 ? pointer : nullptr;
}
void release_aligned(void* pointer) { std::free(pointer); }

void advise_huge_pages(void* pointer, size_t bytes) {
#ifdef MADV_HUGEPAGE
  madvise(pointer, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#else
  (void)pointer, (void)bytes;
#endif
}

bool map_file(const std::string& path, Mapping* mapping, std::string* problem) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    *problem = std::strerror(errno);
    return false;
  }
  struct stat info;
  void* view = MAP_FAILED;
  if (fstat(fd, &info) == 0 && info.st_size > 0)
    view = mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (view == MAP_FAILED) {
    *problem = "cannot be mapped (empty, or not a regular file)";
    return false;
  }
  mapping->data = static_cast<const uint8_t*>(view);
  mapping->size = uint64_t(info.st_size);
  return true;
}
void unmap_file(const Mapping& mapping) { munmap(const_cast<uint8_t*>(mapping.data), size_t(mapping.size)); }

void forget_pages(const Mapping& mapping, uint64_t begin, uint64_t end) {
  // Whole pages inside the range only: a neighbour's bytes on the edge pages stay.
  const uint64_t page = uint64_t(sysconf(_SC_PAGESIZE));
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  if (begin < end) madvise(const_cast<uint8_t*>(mapping.data) + begin, size_t(end - begin), MADV_DONTNEED);
}

void* open_library(const std::string& name, std::string* problem) {
  // GLOBAL: plugins that an MPI opens look for its symbols there.
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    const char* error = dlerror();
    *problem = error ? error : name;
  }
  return library;
}
void close_library(void* library) { dlclose(library); }
void* find_symbol(void* library, const char* name) { return dlsym(library, name); }

}  // namespace platform
}  // namespace dultra
#endif
