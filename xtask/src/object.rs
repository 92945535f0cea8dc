//! The BPF object as a file: stripping it, comparing two of them, listing their maps.

use std::{collections::BTreeSet, fmt};

use anyhow::Context as _;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind, SymbolSection,
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
    read::elf::ElfFile64,
};

type Elf<'data> = ElfFile64<'data>;
type ElfSection<'data, 'file> = <Elf<'data> as object::Object<'data>>::Section<'file>;

/// Takes the debug data out of an object. BTF stays: maps of maps and the kernel's own checks need it.
///
/// # Errors
///
/// It is not a 64-bit ELF file.
pub(crate) fn strip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::read(bytes).context("read the linked object")?;
    for section in &mut builder.sections {
        section.delete = is_debug(&String::from_utf8_lossy(section.name.as_slice()));
    }
    builder.delete_orphans();
    // LLVM keeps all names in one table; what writes the file wants the sections' names in one of their own.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("write the stripped object")?;
    Ok(stripped)
}

/// The names of the maps that an object defines.
///
/// # Errors
///
/// It is not a 64-bit ELF file.
pub(crate) fn maps(bytes: &[u8]) -> anyhow::Result<BTreeSet<String>> {
    let elf = Elf::parse(bytes)?;
    let is_map =
        |index| elf.section_by_index(index).is_ok_and(|section| matches!(section.name(), Ok("maps" | ".maps")));
    let symbols = elf.symbols().filter(|symbol| symbol.is_global() && symbol.section_index().is_some_and(is_map));
    Ok(symbols.filter_map(|symbol| symbol.name().ok().map(str::to_owned)).collect())
}

/// The first difference in what the kernel runs: contents, relocations and symbols of every section but BTF and debug
/// data. Those two are left out because they hold source lines wherever the compiler finds the files.
///
/// # Errors
///
/// One of the two is not a 64-bit ELF file.
pub(crate) fn difference(committed: &[u8], rebuilt: &[u8]) -> anyhow::Result<Option<Difference>> {
    let committed = parts(committed).context("read the committed object")?;
    let rebuilt = parts(rebuilt).context("read the rebuilt object")?;
    for old in &committed {
        let Some(new) = rebuilt.iter().find(|new| new.name == old.name) else {
            return Ok(Some(Difference::new(&old.name, "is missing from the rebuilt one")));
        };
        if let Some(what) = old.difference(new) {
            return Ok(Some(Difference::new(&old.name, what)));
        }
    }
    let added = rebuilt.iter().find(|new| committed.iter().all(|old| old.name != new.name));
    Ok(added.map(|new| Difference::new(&new.name, "is missing from the committed one")))
}

/// Where two objects part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    section: String,
    what: String,
}

impl Difference {
    fn new(section: &str, what: impl Into<String>) -> Self {
        Self { section: section.to_owned(), what: what.into() }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section `{}` {}", self.section, self.what)
    }
}

/// What is compared of one section.
struct Part {
    name: String,
    kind: SectionKind,
    align: u64,
    bytes: Vec<u8>,
    /// Length in memory, which is all that a section without bytes has.
    size: u64,
    relocations: Vec<String>,
    symbols: Vec<String>,
}

impl Part {
    fn difference(&self, new: &Self) -> Option<String> {
        if (self.kind, self.align) != (new.kind, new.align) {
            return Some(format!(
                "is {:?} aligned to {}, rebuilt {:?} to {}",
                self.kind, self.align, new.kind, new.align
            ));
        }
        if self.size != new.size {
            return Some(format!("has {} bytes, rebuilt {}", self.size, new.size));
        }
        if let Some(at) = self.bytes.iter().zip(&new.bytes).position(|(old, new)| old != new) {
            return Some(format!("differs from the rebuilt one at byte {at:#x}"));
        }
        let lists = [("relocations", &self.relocations, &new.relocations), ("symbols", &self.symbols, &new.symbols)];
        lists.into_iter().find_map(|(what, old, new)| {
            let at = (0..old.len().max(new.len())).find(|&at| old.get(at) != new.get(at))?;
            let shown = |list: &[String]| list.get(at).map_or("none", String::as_str).to_owned();
            Some(format!("has other {what}: {}, rebuilt {}", shown(old), shown(new)))
        })
    }
}

fn parts(bytes: &[u8]) -> anyhow::Result<Vec<Part>> {
    let elf = Elf::parse(bytes)?;
    let mut parts = Vec::new();
    for section in elf.sections() {
        let name = section.name()?;
        // Tables of the file format itself: what they say is compared as names, relocations and symbols.
        let is_table = section.kind() == SectionKind::Metadata;
        if is_table || is_debug(name) || name.starts_with(".BTF") {
            continue;
        }
        parts.push(Part {
            name: name.to_owned(),
            kind: section.kind(),
            align: section.align(),
            bytes: section.data()?.to_vec(),
            size: section.size(),
            relocations: relocations(&elf, &section),
            symbols: symbols(&elf, &section),
        });
    }
    Ok(parts)
}

fn relocations(elf: &Elf<'_>, section: &ElfSection<'_, '_>) -> Vec<String> {
    let target = |target| match target {
        RelocationTarget::Symbol(index) => elf.symbol_by_index(index).map_or_else(
            |_| "a missing symbol".to_owned(),
            |symbol| match (symbol.name(), symbol.section_index().and_then(|at| elf.section_by_index(at).ok())) {
                (Ok("") | Err(_), Some(section)) => format!("section {}", section.name().unwrap_or("?")),
                (name, _) => name.unwrap_or("?").to_owned(),
            },
        ),
        other => format!("{other:?}"),
    };
    let mut relocations: Vec<_> = section
        .relocations()
        .map(|(at, relocation)| {
            let (flags, addend) = (relocation.flags(), relocation.addend());
            format!("{at:#06x} {flags:?} {} {addend:+}", target(relocation.target()))
        })
        .collect();
    relocations.sort();
    relocations
}

fn symbols(elf: &Elf<'_>, section: &ElfSection<'_, '_>) -> Vec<String> {
    let mut symbols: Vec<_> = elf
        .symbols()
        .filter(|symbol| symbol.section() == SymbolSection::Section(section.index()))
        .map(|symbol| {
            let name = symbol.name().unwrap_or("?");
            format!("{:#06x} {} bytes {:?} {:?} {name}", symbol.address(), symbol.size(), symbol.kind(), symbol.scope())
        })
        .collect();
    symbols.sort();
    symbols
}

fn is_debug(section: &str) -> bool {
    section.starts_with(".debug") || section.starts_with(".rel.debug")
}

#[cfg(test)]
mod tests {
    use object::{
        Endianness,
        elf::{EM_BPF, ET_REL, SHF_ALLOC, SHF_EXECINSTR, SHT_PROGBITS, SHT_SYMTAB, STB_GLOBAL, STT_FUNC},
    };

    use super::*;

    /// An object with one program, a string of BTF and one of debug data.
    fn object(program: &[u8], name: &'static str, btf: &'static [u8]) -> Vec<u8> {
        let mut builder = Builder::new(Endianness::Little, true);
        builder.header.e_type = ET_REL;
        builder.header.e_machine = EM_BPF;
        let code = u64::from(SHF_ALLOC | SHF_EXECINSTR);
        let mut program_section = None;
        for (name, bytes, flags) in
            [("classifier", program.to_vec(), code), (".BTF", btf.to_vec(), 0), (".debug_info", vec![7; 4], 0)]
        {
            let section = builder.sections.add();
            section.name = name.into();
            section.sh_type = SHT_PROGBITS;
            section.sh_flags = flags;
            section.sh_addralign = 8;
            section.data = SectionData::Data(bytes.into());
            program_section.get_or_insert(section.id());
        }
        for (name, kind, data) in [
            (".symtab", SHT_SYMTAB, SectionData::Symbol),
            (".strtab", SHT_STRTAB, SectionData::String),
            (".shstrtab", SHT_STRTAB, SectionData::SectionString),
        ] {
            let section = builder.sections.add();
            section.name = name.into();
            section.sh_type = kind;
            section.sh_addralign = 8;
            section.data = data;
        }
        let symbol = builder.symbols.add();
        symbol.name = name.into();
        symbol.section = program_section;
        symbol.set_st_info(STB_GLOBAL, STT_FUNC);
        symbol.st_size = program.len() as u64;
        builder.set_section_sizes();
        let mut bytes = Vec::new();
        builder.write(&mut bytes).expect("a small object can be written");
        bytes
    }

    #[track_caller]
    fn check(committed: &[u8], rebuilt: &[u8], expected: Option<(&str, &str)>) {
        let expected = expected.map(|(section, what)| Difference::new(section, what));
        assert_eq!(difference(committed, rebuilt).expect("both are objects"), expected);
    }

    #[test]
    fn source_lines_in_btf_do_not_count() {
        check(&object(&[1, 2], "from_endpoint", b"here"), &object(&[1, 2], "from_endpoint", b"there"), None);
    }

    #[test]
    fn one_instruction_counts() {
        let what = Some(("classifier", "differs from the rebuilt one at byte 0x1"));
        check(&object(&[1, 2], "from_endpoint", b""), &object(&[1, 3], "from_endpoint", b""), what);
    }

    #[test]
    fn length_counts() {
        let what = Some(("classifier", "has 2 bytes, rebuilt 3"));
        check(&object(&[1, 2], "from_endpoint", b""), &object(&[1, 2, 3], "from_endpoint", b""), what);
    }

    #[test]
    fn a_symbol_counts() {
        let difference = difference(&object(&[1], "from_endpoint", b""), &object(&[1], "to_endpoint", b""));
        let shown = difference.expect("both are objects").expect("they differ").to_string();
        assert!(
            shown.starts_with("section `classifier` has other symbols: ") && shown.ends_with("to_endpoint"),
            "{shown}"
        );
    }

    #[test]
    fn stripping_takes_debug_data_and_nothing_else() {
        let whole = object(&[1, 2], "from_endpoint", b"btf");
        let stripped = strip(&whole).expect("it is an object");
        let elf = Elf::parse(stripped.as_slice()).expect("it still is one");
        assert!(elf.section_by_name(".debug_info").is_none());
        assert_eq!(elf.section_by_name(".BTF").expect("BTF stays").data().ok(), Some(&b"btf"[..]));
        check(&whole, &stripped, None);
    }
}
