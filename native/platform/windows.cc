#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <malloc.h>
#include <windows.h>

#include "platform/platform.h"

namespace dultra {
namespace platform {

void* allocate_aligned(size_t bytes, size_t alignment) { return _aligned_malloc(bytes, alignment); }
void release_aligned(void* pointer) { _aligned_free(pointer); }

void advise_huge_pages(void*, size_t) {}

bool map_file(const std::string& path, Mapping* mapping, std::string* problem) {
  std::wstring wide(size_t(MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, nullptr, 0)), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, path.c_str(), -1, wide.data(), int(wide.size()));
  // Others may rename or delete the file meanwhile, as they may elsewhere.
  const DWORD share = FILE_SHARE_READ | FILE_SHARE_DELETE;
  const HANDLE file =
      CreateFileW(wide.c_str(), GENERIC_READ, share, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file == INVALID_HANDLE_VALUE) {
    *problem = "cannot be opened (Windows error " + std::to_string(GetLastError()) + ")";
    return false;
  }
  LARGE_INTEGER size;
  const bool sized = GetFileSizeEx(file, &size) && size.QuadPart > 0;
  const HANDLE section = sized ? CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr) : nullptr;
  const void* view = section ? MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0) : nullptr;
  if (section) CloseHandle(section);
  CloseHandle(file);
  if (!view) {
    *problem = "cannot be mapped (empty, or not a regular file)";
    return false;
  }
  mapping->data = static_cast<const uint8_t*>(view);
  mapping->size = uint64_t(size.QuadPart);
  return true;
}
void unmap_file(const Mapping& mapping) { UnmapViewOfFile(mapping.data); }

void forget_pages(const Mapping&, uint64_t, uint64_t) {}

void* open_library(const std::string& name, std::string* problem) {
  const HMODULE library = LoadLibraryA(name.c_str());
  if (!library) *problem = name + " cannot be opened (Windows error " + std::to_string(GetLastError()) + ")";
  return library;
}
void close_library(void* library) { FreeLibrary(static_cast<HMODULE>(library)); }
void* find_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}

}  // namespace platform
}  // namespace dultra
#endif
