/// Files: read whole, hashed, and written so that nothing is half-written.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace dnd_fast {

/// The content of a regular file. Throws Error.
std::string read_file(const std::filesystem::path& file);

/// SHA-256 of bytes that come piece by piece.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void add(std::string_view bytes);

  /// In hexadecimal digits; nothing can be added afterwards.
  std::string digest();

 private:
  void* context_;
};

/// The SHA-256 of a file, in hexadecimal digits. Throws Error.
std::string sha256(const std::filesystem::path& file);

/// Write a new file, and the folders that it lies in. Throws Error.
void write_file(const std::filesystem::path& file, std::string_view content);

/// A new folder among the system's temporary ones, which goes with this object.
class TemporaryFolder {
 public:
  /// Throws Error.
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// A hidden sibling of a folder, whose files become the folder's when it is committed, and which goes
/// with this object otherwise. Another process never sees half a folder.
class StagedFolder {
 public:
  /// Throws Error where nothing can be written beside `target`.
  explicit StagedFolder(const std::filesystem::path& target);
  ~StagedFolder();
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  /// Write one file, down to the disk: pieces one after another. Throws Error.
  void write(const std::string& name, const std::vector<std::string_view>& pieces);

  /// A new folder appears by one rename; in an existing one each file is replaced by one.
  void commit();

 private:
  std::filesystem::path target_, staged_;
};

}  // namespace dnd_fast
