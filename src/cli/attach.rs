//! What attaches a guest to a port: QEMU's and Cloud Hypervisor's arguments, libvirt's XML.
//!
//! Owns the three syntaxes and their quoting. It only prints: it reads no machine and starts none.
//!
//! Common to the three: the guest's memory must be shared (a vhost-user backend maps it), the
//! VMM takes the opposite role on the socket, and the rings have 1024 entries, the most that QEMU
//! allows, so that a burst finds room.

use std::fmt;

use ringswitch::config::{PortKind, PortSettings, Settings, SocketRole, VhostUserSettings};

use super::{ArgsArgs, Vmm};

/// Entries of each ring.
const RING_SIZE: u16 = 1024;

/// Why a guest can't be attached as asked.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("there is no port {name:?}; expected one of: {known}")]
    UnknownPort { name: String, known: String },
    #[error("port {0:?} is a TAP device of the host; expected a vhost-user port")]
    Tap(String),
    #[error(
        "ports {0:?} and {1:?} would get the same MAC address, {2}; \
         give {0:?} another one with --mac"
    )]
    SameMac(String, String, Mac),
    #[error(
        "socket {0:?} has one of \" [ ] in its path, which cloud-hypervisor can't take; rename it"
    )]
    Unquotable(String),
}

/// A guest's NIC on a port.
#[derive(Debug)]
pub struct Attachment<'a> {
    name: &'a str,
    socket: String,
    role: SocketRole,
    queue_pairs: u16,
    mtu: Option<u16>,
    mac: Mac,
    memory: &'a str,
}

impl<'a> Attachment<'a> {
    /// The NIC that `args` asks for, on a port of `settings`.
    pub fn new(settings: &'a Settings, args: &'a ArgsArgs) -> Result<Self, AttachError> {
        let (port, vhost_user) = find(settings, &args.port)?;
        let mac = match args.mac {
            Some(mac) => mac,
            None => derived_mac(settings, port)?,
        };
        let pairs = vhost_user.queue_pairs;
        Ok(Self {
            name: &port.name,
            // Settings have UTF-8 paths only.
            socket: vhost_user.socket.to_string_lossy().into_owned(),
            role: vhost_user.role,
            queue_pairs: args.vcpus.map_or(pairs, |vcpus| pairs.min(vcpus)),
            mtu: vhost_user.mtu,
            mac,
            memory: &args.memory,
        })
    }

    /// What to give to `vmm`, with a newline at the end.
    pub fn text(&self, vmm: Vmm) -> Result<String, AttachError> {
        match vmm {
            Vmm::Qemu => Ok(self.qemu()),
            Vmm::CloudHypervisor => self.cloud_hypervisor(),
            Vmm::Libvirt => Ok(self.libvirt()),
        }
    }

    fn qemu(&self) -> String {
        let Self { name, queue_pairs, mac, memory, .. } = self;
        // In QEMU's option lists a comma inside a value is written twice.
        let path = self.socket.replace(',', ",,");
        let role = match self.role {
            SocketRole::Server => "reconnect=1",
            SocketRole::Client => "server=on,wait=off",
        };
        let mut device = format!("virtio-net-pci,netdev=net-{name},mac={mac}");
        if *queue_pairs > 1 {
            // A vector for each ring, one for the control queue, one for configuration changes.
            device.push_str(&format!(",mq=on,vectors={}", 2 * queue_pairs + 2));
        }
        // More than 256 entries for what the guest sends are allowed with vhost-user only.
        device.push_str(&format!(",rx_queue_size={RING_SIZE},tx_queue_size={RING_SIZE}"));
        if let Some(mtu) = self.mtu {
            device.push_str(&format!(",host_mtu={mtu}"));
        }
        command_line(&[
            ("-m", memory.to_string()),
            ("-object", format!("memory-backend-memfd,id=mem,size={memory},share=on")),
            ("-machine", "memory-backend=mem".to_owned()),
            ("-chardev", format!("socket,id=char-{name},path={path},{role}")),
            (
                "-netdev",
                format!("vhost-user,id=net-{name},chardev=char-{name},queues={queue_pairs}"),
            ),
            ("-device", device),
        ])
    }

    fn cloud_hypervisor(&self) -> Result<String, AttachError> {
        if self.socket.contains(['"', '[', ']']) {
            return Err(AttachError::Unquotable(self.socket.clone()));
        }
        // Only quotes keep a comma inside a value.
        let quote = if self.socket.contains(',') { "\"" } else { "" };
        let mut net = format!(
            "vhost_user=true,socket={quote}{}{quote},num_queues={},queue_size={RING_SIZE},mac={}",
            self.socket,
            2 * self.queue_pairs,
            self.mac
        );
        if let Some(mtu) = self.mtu {
            net.push_str(&format!(",mtu={mtu}"));
        }
        if self.role == SocketRole::Client {
            net.push_str(",vhost_mode=server");
        }
        let memory = format!("size={},shared=on", self.memory);
        Ok(command_line(&[("--memory", memory), ("--net", net)]))
    }

    fn libvirt(&self) -> String {
        let path = xml_attribute(&self.socket);
        // libvirt names QEMU's role, which is the opposite of ours.
        let source = match self.role {
            SocketRole::Server => format!(
                "<source type='unix' path='{path}' mode='client'>\n    \
                 <reconnect enabled='yes' timeout='1'/>\n  \
                 </source>"
            ),
            SocketRole::Client => format!("<source type='unix' path='{path}' mode='server'/>"),
        };
        let mtu = self.mtu.map_or(String::new(), |mtu| format!("  <mtu size='{mtu}'/>\n"));
        // libvirt refuses more than one queue only for other models, so one needs no special case.
        format!(
            "<!-- in <domain> -->\n\
             <memoryBacking>\n  \
               <source type='memfd'/>\n  \
               <access mode='shared'/>\n\
             </memoryBacking>\n\
             <!-- in <devices> -->\n\
             <interface type='vhostuser'>\n  \
               <mac address='{mac}'/>\n  \
               {source}\n  \
               <model type='virtio'/>\n  \
               <driver queues='{pairs}' rx_queue_size='{RING_SIZE}' tx_queue_size='{RING_SIZE}'/>\n\
             {mtu}\
             </interface>\n",
            mac = self.mac,
            pairs = self.queue_pairs,
        )
    }
}

fn find<'a>(
    settings: &'a Settings,
    name: &str,
) -> Result<(&'a PortSettings, &'a VhostUserSettings), AttachError> {
    let Some(port) = settings.ports.iter().find(|port| port.name == name) else {
        let known: Vec<_> = vhost_user_ports(settings).map(|port| port.name.as_str()).collect();
        return Err(AttachError::UnknownPort { name: name.to_owned(), known: known.join(" ") });
    };
    match &port.kind {
        PortKind::VhostUser(vhost_user) => Ok((port, vhost_user)),
        PortKind::Tap(_) => Err(AttachError::Tap(name.to_owned())),
    }
}

fn vhost_user_ports(settings: &Settings) -> impl Iterator<Item = &PortSettings> {
    settings.ports.iter().filter(|port| matches!(port.kind, PortKind::VhostUser(_)))
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac([u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Mac {
    /// The address of the guest on the port `name`: always the same, on every host, so that a
    /// guest keeps it over restarts. Locally administered, with the prefix that QEMU's have.
    fn from_name(name: &str) -> Self {
        // 32-bit FNV-1a: three bytes need no more, and std's hashers may change between releases.
        let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        let [a, b, c, d] = name.bytes().fold(0x811c_9dc5, step).to_be_bytes();
        // The top byte folded in, as FNV's authors advise for fewer bits.
        Self([0x52, 0x54, 0x00, b, c, a ^ d])
    }
}

/// The MAC of `port`, unless a neighbour's name stands for the same one: 24 bits are few enough
/// for that to happen with a thousand ports, and two guests with one address cut each other off.
fn derived_mac(settings: &Settings, port: &PortSettings) -> Result<Mac, AttachError> {
    let mac = Mac::from_name(&port.name);
    let same =
        |other: &&PortSettings| other.name != port.name && Mac::from_name(&other.name) == mac;
    match vhost_user_ports(settings).find(same) {
        Some(other) => Err(AttachError::SameMac(port.name.clone(), other.name.clone(), mac)),
        None => Ok(mac),
    }
}

/// A MAC address from the command line: one that a NIC can have.
pub fn mac(text: &str) -> Result<Mac, String> {
    let expected = "expected six hexadecimal bytes, such as 52:54:00:12:34:56";
    let mut bytes = [0; 6];
    let parts: Vec<_> = text.split(':').collect();
    if parts.len() != bytes.len() {
        return Err(expected.to_owned());
    }
    for (byte, part) in bytes.iter_mut().zip(parts) {
        let digits = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
        let value = u8::from_str_radix(part, 16).ok().filter(|_| digits);
        *byte = value.ok_or(expected)?;
    }
    if bytes[0] & 1 != 0 {
        return Err("this is a group address; expected an even first byte".to_owned());
    }
    if bytes == [0; 6] {
        return Err("a NIC can't have this address; expected one that is not all zero".to_owned());
    }
    Ok(Mac(bytes))
}

/// A memory size that QEMU and Cloud Hypervisor read alike.
pub fn memory(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix(['M', 'G']).unwrap_or_default();
    let number = digits.parse::<u32>().ok().filter(|n| *n > 0 && !digits.starts_with('+'));
    number.map(|_| text.to_owned()).ok_or_else(|| "expected a size such as 512M or 4G".to_owned())
}

/// Options and their values, one pair a line, ready for a shell.
fn command_line(options: &[(&str, String)]) -> String {
    let lines: Vec<_> =
        options.iter().map(|(option, value)| format!("{option} {}", shell_word(value))).collect();
    lines.join(" \\\n") + "\n"
}

/// `text` as one word of a POSIX shell.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    if text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `text` inside an XML attribute in single quotes.
fn xml_attribute(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    const FILE: &str = "\
        [[port]]\nname = \"vm1\"\ntype = \"vhost-user\"\nsocket = \"/run/vm1.sock\"\n\
        [[port]]\nname = \"vm2\"\ntype = \"vhost-user\"\nsocket = \"/run/a,b 'c'<&>.sock\"\n\
        role = \"client\"\nqueue-pairs = 1\nmtu = 9000\n\
        [[port]]\nname = \"up\"\ntype = \"tap\"\ndevice = \"rs0\"\n";

    fn text(line: &str) -> Result<String, AttachError> {
        let line = format!("ringswitch args {line} --config unread.toml");
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("a good command line");
        let Command::Args(args) = cli.command else { panic!("{line}") };
        let settings = Settings::from_toml(FILE, Path::new("unread.toml")).expect("good settings");
        Attachment::new(&settings, &args)?.text(args.vmm)
    }

    #[test]
    fn qemu_connects_to_a_port_that_listens() {
        assert_eq!(
            text("qemu vm1 --mac 52:54:00:AB:cd:01").expect("arguments"),
            "-m 1G \\\n\
             -object memory-backend-memfd,id=mem,size=1G,share=on \\\n\
             -machine memory-backend=mem \\\n\
             -chardev socket,id=char-vm1,path=/run/vm1.sock,reconnect=1 \\\n\
             -netdev vhost-user,id=net-vm1,chardev=char-vm1,queues=8 \\\n\
             -device virtio-net-pci,netdev=net-vm1,mac=52:54:00:ab:cd:01,mq=on,vectors=18,\
             rx_queue_size=1024,tx_queue_size=1024\n"
        );
    }

    #[test]
    fn qemu_listens_for_a_port_that_connects() {
        assert_eq!(
            text("qemu vm2 --memory 512M --mac 02:00:00:00:00:01").expect("arguments"),
            "-m 512M \\\n\
             -object memory-backend-memfd,id=mem,size=512M,share=on \\\n\
             -machine memory-backend=mem \\\n\
             -chardev 'socket,id=char-vm2,path=/run/a,,b '\\''c'\\''<&>.sock,server=on,wait=off' \\\n\
             -netdev vhost-user,id=net-vm2,chardev=char-vm2,queues=1 \\\n\
             -device virtio-net-pci,netdev=net-vm2,mac=02:00:00:00:00:01,\
             rx_queue_size=1024,tx_queue_size=1024,host_mtu=9000\n"
        );
    }

    #[test]
    fn cloud_hypervisor_in_both_roles() {
        assert_eq!(
            text("cloud-hypervisor vm1 --vcpus 2 --mac 02:00:00:00:00:01").expect("arguments"),
            "--memory size=1G,shared=on \\\n\
             --net vhost_user=true,socket=/run/vm1.sock,num_queues=4,queue_size=1024,\
             mac=02:00:00:00:00:01\n"
        );
        assert_eq!(
            text("cloud-hypervisor vm2 --mac 02:00:00:00:00:01").expect("arguments"),
            "--memory size=1G,shared=on \\\n\
             --net 'vhost_user=true,socket=\"/run/a,b '\\''c'\\''<&>.sock\",num_queues=2,\
             queue_size=1024,mac=02:00:00:00:00:01,mtu=9000,vhost_mode=server'\n"
        );
    }

    #[test]
    fn libvirt_in_both_roles() {
        assert_eq!(
            text("libvirt vm1 --mac 02:00:00:00:00:01").expect("elements"),
            "<!-- in <domain> -->\n\
             <memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n\
             </memoryBacking>\n\
             <!-- in <devices> -->\n\
             <interface type='vhostuser'>\n  <mac address='02:00:00:00:00:01'/>\n  \
             <source type='unix' path='/run/vm1.sock' mode='client'>\n    \
             <reconnect enabled='yes' timeout='1'/>\n  </source>\n  \
             <model type='virtio'/>\n  \
             <driver queues='8' rx_queue_size='1024' tx_queue_size='1024'/>\n\
             </interface>\n"
        );
        let text = text("libvirt vm2").expect("elements");
        let source = "\n  <source type='unix' path='/run/a,b &apos;c&apos;&lt;&amp;>.sock' \
                      mode='server'/>\n";
        assert!(text.contains(source), "{text}");
        assert!(text.contains("\n  <mtu size='9000'/>\n</interface>\n"), "{text}");
    }

    #[test]
    fn the_page_shows_what_is_printed() {
        let page = include_str!("../../docs/configuration.md");
        let shown = page.split("```console\n$ ").nth(1).expect("an example");
        let (line, shown) = shown.split_once('\n').expect("its output");
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("a good command line");
        let Command::Args(args) = cli.command else { panic!("{line}") };
        let settings = args.settings().expect("good settings");
        let printed = Attachment::new(&settings, &args).and_then(|nic| nic.text(args.vmm));
        assert_eq!(printed.expect("arguments"), shown.split("```").next().expect("text"));
    }

    #[test]
    fn more_vcpus_than_queue_pairs_change_nothing() {
        assert_eq!(text("qemu vm1 --vcpus 64").expect("a"), text("qemu vm1").expect("b"));
    }

    #[test]
    fn ports_that_take_no_guest_are_refused() {
        let message = |line| text(line).expect_err("no guest").to_string();
        assert_eq!(message("qemu vm3"), "there is no port \"vm3\"; expected one of: vm1 vm2");
        assert_eq!(
            message("qemu up"),
            "port \"up\" is a TAP device of the host; expected a vhost-user port"
        );
    }

    #[test]
    fn a_path_that_cloud_hypervisor_cannot_read_is_refused() {
        let settings = |path: &str| {
            let text = FILE.replace("/run/vm1.sock", path);
            Settings::from_toml(&text, Path::new("f")).expect("good settings")
        };
        let line = "ringswitch args cloud-hypervisor vm1 --config f";
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("a good command line");
        let Command::Args(args) = cli.command else { panic!("{line}") };
        for path in ["/a\\\"b", "/a[b", "/a]b"] {
            let settings = settings(path);
            let attachment = Attachment::new(&settings, &args).expect("a port");
            assert!(matches!(attachment.text(args.vmm), Err(AttachError::Unquotable(_))), "{path}");
        }
    }

    #[test]
    fn a_derived_mac_is_stable_unicast_and_local() {
        // These must never change: guests have them.
        assert_eq!(Mac::from_name("vm1").to_string(), "52:54:00:1c:93:f6");
        assert_eq!(Mac::from_name("vm2").to_string(), "52:54:00:1c:95:68");
        let [first, ..] = Mac::from_name("anything").0;
        assert_eq!(first & 0b11, 0b10);
    }

    #[test]
    fn names_that_stand_for_one_mac_are_refused() {
        // Search for two colliding names; 24 bits give one among some 5000.
        let mut seen = std::collections::HashMap::new();
        let (a, b) = (0..)
            .find_map(|i| {
                let name = format!("vm{i}");
                let mac = Mac::from_name(&name).to_string();
                seen.insert(mac, name.clone()).map(|other| (name, other))
            })
            .expect("endless search");
        let ports = [(a.clone(), "/a".into()), (b.clone(), "/b".into())];
        let settings = Settings::from_args(&ports, None).expect("good settings");
        let error = derived_mac(&settings, &settings.ports[0]).expect_err("one MAC");
        assert!(matches!(error, AttachError::SameMac(x, y, _) if x == a && y == b));
    }

    #[test]
    fn macs_and_sizes_are_read_strictly() {
        assert_eq!(
            mac("52:54:00:0A:0b:ff").map(|mac| mac.to_string()),
            Ok("52:54:00:0a:0b:ff".into())
        );
        for text in [
            "",
            "52:54:00:0a:0b",
            "52:54:00:0a:0b:ff:00",
            "52:54:00:0a:0b:+f",
            "5254000a0bff",
            "52:54:00:0a:0b:f",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert!(mac(text).is_err(), "{text}");
        }
        for text in ["1M", "512M", "4G"] {
            assert_eq!(memory(text), Ok(text.to_owned()));
        }
        for text in ["", "G", "0G", "-1G", "+1G", "1", "1K", "1T", "1GG", "1 G", "1.5G"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shell_words_survive_a_shell() {
        for text in ["plain-_./:=,+@%", "a b", "it's", "$HOME `x` \"q\" \\ * <&>", "é"] {
            let script = format!("printf %s {}", shell_word(text));
            let output = std::process::Command::new("sh").arg("-c").arg(script).output();
            assert_eq!(output.expect("sh runs").stdout, text.as_bytes());
        }
    }
}
