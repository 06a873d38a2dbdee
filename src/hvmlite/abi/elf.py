"""ELF headers, as far as a kernel image needs them. Sources: linux/elf.h, linux/elf-em.h (gABI)."""

from typing import Annotated

from hvmlite.abi.layout import Bytes, Struct, u16, u32, u64

EI_CLASS = 4
EI_DATA = 5
EI_NIDENT = 16
ELFCLASS32 = 1
ELFCLASS64 = 2
ELFDATA2LSB = 1
ELFDATA2MSB = 2

ET_NONE = 0
ET_REL = 1
ET_EXEC = 2
ET_DYN = 3
ET_CORE = 4
EM_386 = 3
EM_X86_64 = 62

PT_LOAD = 1
PT_NOTE = 4
PF_X = 1
PF_W = 2
PF_R = 4
SHT_NOTE = 7


class elf32_hdr(Struct):
    """The header of a 32-bit file; offsets and sizes in bytes."""

    e_ident: Annotated[bytes, Bytes(EI_NIDENT)] = b""
    e_type: u16 = 0
    e_machine: u16 = 0
    e_version: u32 = 0
    e_entry: u32 = 0
    e_phoff: u32 = 0
    e_shoff: u32 = 0
    e_flags: u32 = 0
    e_ehsize: u16 = 0
    e_phentsize: u16 = 0
    e_phnum: u16 = 0
    e_shentsize: u16 = 0
    e_shnum: u16 = 0
    e_shstrndx: u16 = 0


class elf64_hdr(Struct):
    """The header of a 64-bit file; offsets and sizes in bytes."""

    e_ident: Annotated[bytes, Bytes(EI_NIDENT)] = b""
    e_type: u16 = 0
    e_machine: u16 = 0
    e_version: u32 = 0
    e_entry: u64 = 0
    e_phoff: u64 = 0
    e_shoff: u64 = 0
    e_flags: u32 = 0
    e_ehsize: u16 = 0
    e_phentsize: u16 = 0
    e_phnum: u16 = 0
    e_shentsize: u16 = 0
    e_shnum: u16 = 0
    e_shstrndx: u16 = 0


class elf32_phdr(Struct):
    """A program header of a 32-bit file."""

    p_type: u32 = 0
    p_offset: u32 = 0
    p_vaddr: u32 = 0
    p_paddr: u32 = 0
    p_filesz: u32 = 0
    p_memsz: u32 = 0
    p_flags: u32 = 0
    p_align: u32 = 0


class elf64_phdr(Struct):
    """A program header of a 64-bit file."""

    p_type: u32 = 0
    p_flags: u32 = 0
    p_offset: u64 = 0
    p_vaddr: u64 = 0
    p_paddr: u64 = 0
    p_filesz: u64 = 0
    p_memsz: u64 = 0
    p_align: u64 = 0


class elf32_shdr(Struct):
    """A section header of a 32-bit file."""

    sh_name: u32 = 0
    sh_type: u32 = 0
    sh_flags: u32 = 0
    sh_addr: u32 = 0
    sh_offset: u32 = 0
    sh_size: u32 = 0
    sh_link: u32 = 0
    sh_info: u32 = 0
    sh_addralign: u32 = 0
    sh_entsize: u32 = 0


class elf64_shdr(Struct):
    """A section header of a 64-bit file."""

    sh_name: u32 = 0
    sh_type: u32 = 0
    sh_flags: u64 = 0
    sh_addr: u64 = 0
    sh_offset: u64 = 0
    sh_size: u64 = 0
    sh_link: u32 = 0
    sh_info: u32 = 0
    sh_addralign: u64 = 0
    sh_entsize: u64 = 0
