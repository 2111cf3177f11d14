#include "files.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "dnd_fast/generator.hpp"

namespace dnd_fast {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void fail(const fs::path& path, const std::string& what, int code) {
  throw Error(path.string() + " " + what + ": " + std::strerror(code) + ".");
}

/// A file descriptor that closes itself.
class File {
 public:
  File(const fs::path& path, int flags) : path_(path), descriptor_(::open(path.c_str(), flags, 0666)) {
    if (descriptor_ < 0) fail(path, "cannot be opened", errno);
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail(path_, "cannot be written", errno);
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
  }

  void sync() {
    if (::fsync(descriptor_) != 0) fail(path_, "cannot be written", errno);
  }

 private:
  fs::path path_;
  int descriptor_;
};

std::ifstream open_regular(const fs::path& file) {
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) throw Error(file.string() + " does not exist or is no file.");
  std::ifstream stream(file, std::ios::binary);
  if (!stream) fail(file, "cannot be opened", errno);
  return stream;
}

}  // namespace

std::string read_file(const fs::path& file) {
  std::ifstream stream = open_regular(file);
  std::string content(fs::file_size(file), '\0');
  stream.read(content.data(), static_cast<std::streamsize>(content.size()));
  if (!stream) throw Error(file.string() + " cannot be read, or has changed meanwhile.");
  return content;
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  const auto context = static_cast<EVP_MD_CTX*>(context_);
  if (!context || !EVP_DigestInit_ex(context, EVP_sha256(), nullptr)) {
    EVP_MD_CTX_free(context);
    throw std::bad_alloc();
  }
}

Sha256::~Sha256() { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context_)); }

void Sha256::add(std::string_view bytes) {
  EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_), bytes.data(), bytes.size());
}

std::string Sha256::digest() {
  unsigned char bytes[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_), bytes, &size);
  std::string hexadecimal;
  for (unsigned int i = 0; i < size; ++i) {
    for (const int digit : {bytes[i] >> 4, bytes[i] & 15}) hexadecimal += "0123456789abcdef"[digit];
  }
  return hexadecimal;
}

std::string sha256(const fs::path& file) {
  std::ifstream stream = open_regular(file);
  Sha256 hash;
  std::vector<char> buffer(1 << 20);
  do {
    stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    hash.add({buffer.data(), static_cast<std::size_t>(stream.gcount())});
  } while (stream);
  if (!stream.eof()) throw Error(file.string() + " cannot be read.");
  return hash.digest();
}

void write_file(const fs::path& file, std::string_view content) {
  std::error_code failed;
  fs::create_directories(file.parent_path(), failed);
  if (failed) fail(file, "cannot be written", failed.value());
  File(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC).write(content);
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (fs::temp_directory_path() / "dnd_fast.XXXXXX").string();
  if (!::mkdtemp(name.data())) fail(name, "cannot be made", errno);
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

StagedFolder::StagedFolder(const fs::path& target) {
  // Without a slash at its end, which would leave no name to stage under.
  target_ = fs::absolute(target).lexically_normal();
  if (!target_.has_filename()) target_ = target_.parent_path();
  try {
    if (fs::exists(target_) && !fs::is_directory(target_)) {
      throw Error(target_.string() + " is a file; give a folder to write to.");
    }
    fs::create_directories(target_.parent_path());
    const std::string stem = "." + target_.filename().string() + "." + std::to_string(::getpid());
    int attempt = 0;
    do {
      staged_ = target_.parent_path() / (stem + "." + std::to_string(attempt++));
    } while (!fs::create_directory(staged_));
  } catch (const fs::filesystem_error& error) {
    staged_.clear();
    throw Error(target_.string() + " cannot be written: " + error.code().message() + ".");
  }
}

StagedFolder::~StagedFolder() {
  std::error_code ignored;
  if (!staged_.empty()) fs::remove_all(staged_, ignored);
}

void StagedFolder::write(const std::string& name, const std::vector<std::string_view>& pieces) {
  File file(staged_ / name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC);
  for (const std::string_view piece : pieces) file.write(piece);
  file.sync();
}

void StagedFolder::commit() try {
  std::vector<fs::path> names;
  for (const auto& entry : fs::directory_iterator(staged_)) names.push_back(entry.path().filename());
  for (const fs::path& name : names) {
    if (fs::is_directory(target_ / name)) {
      throw Error((target_ / name).string() + " is a folder; move it away.");
    }
  }
  std::error_code occupied;
  if (!fs::exists(target_)) fs::rename(staged_, target_, occupied);
  if (fs::exists(staged_)) {  // the folder was there, or has appeared since
    if (!fs::is_directory(target_)) throw fs::filesystem_error("rename", target_, occupied);
    for (const fs::path& name : names) fs::rename(staged_ / name, target_ / name);
    File(target_, O_RDONLY | O_DIRECTORY | O_CLOEXEC).sync();
  }
  File(target_.parent_path(), O_RDONLY | O_DIRECTORY | O_CLOEXEC).sync();
} catch (const fs::filesystem_error& error) {
  throw Error(target_.string() + " cannot be written: " + error.code().message() + ".");
}

}  // namespace dnd_fast
